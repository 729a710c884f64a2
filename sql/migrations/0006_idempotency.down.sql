DROP FUNCTION purge_idempotency_keys(integer);
DROP TABLE idempotency_keys;
