-- Which version the data is of (kasparro/store/data_version.py).

-- name: version --
-- As the text that a commit sends to the channel kasparro_data.
SELECT data_version::text FROM instance;
