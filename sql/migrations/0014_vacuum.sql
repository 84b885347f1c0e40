-- Settings of autovacuum for two tables in which its default, a fifth of dead rows, is much.

-- The candles of the present day are written again every six hours. Their pages are full, so nine of ten
-- move to another page, and leave a dead row and an entry in the index. With years of candles, a fifth of the
-- table would be those of months.
ALTER TABLE daily_candles SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02
);

-- Each run deletes as many payloads as it stores, and the operator has set how much room they may take.
ALTER TABLE payloads SET (
    autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_scale_factor = 0.05
);
