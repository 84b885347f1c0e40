-- The data version (kasparro/store/data_version.py).

-- name: version --
-- As text, as a commit sends it to the channel kasparro_data.
SELECT data_version::text FROM instance;
