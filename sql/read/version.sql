-- The data version (kasparro/store/data_version.py).

-- name: version --
SELECT data_version FROM instance;
