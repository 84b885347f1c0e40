-- By itself: an index is built beside readers, but dropped before all else it would keep them waiting for the
-- whole of that, and dropped after it, within one transaction, might end in a deadlock with a writer.

DROP INDEX unified_data_by_symbol;
