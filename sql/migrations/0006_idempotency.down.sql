DROP FUNCTION claim_idempotency_key(text);
DROP FUNCTION purge_idempotency_keys(integer);
DROP TABLE idempotency_keys;
