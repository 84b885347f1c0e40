-- The rows of a symbol in the order by rank, so that a page of it reads no more rows than it shows, and
-- `symbol` itself, without which PostgreSQL looks every row up to count them.

CREATE INDEX unified_data_by_symbol_and_rank
ON unified_data (lower(symbol), rank, source, source_id) INCLUDE (symbol);

-- Estimates of an index's expressions are made by this alone.
ANALYZE unified_data;
