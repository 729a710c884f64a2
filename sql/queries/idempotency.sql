-- The lock is held to the end of the transaction; where it is not had, another request with the key is under way.
-- name: ClaimIdempotencyKey :one
SELECT pg_try_advisory_xact_lock(hashtextextended(concat_ws(' ', current_org_id(), current_account_id(), @key::text), 0)) AS claimed,
       k.id, k.request, k.status, k.headers, k.body
FROM (SELECT 1) one
LEFT JOIN idempotency_keys k ON k.org_id = current_org_id() AND k.account_id = current_account_id() AND k.key = @key AND k.created_at > now() - interval '24 hours';

-- name: RecordIdempotentAnswer :exec
WITH expired AS (
    DELETE FROM idempotency_keys
    WHERE org_id = current_org_id() AND account_id = current_account_id() AND key = @key AND created_at <= now() - interval '24 hours'
    RETURNING id
)
INSERT INTO idempotency_keys (org_id, account_id, key, request, status, headers, body)
SELECT current_org_id(), current_account_id(), @key, @request, @status, @headers, sqlc.narg('body')
FROM (SELECT count(*) FROM expired) first; -- what nobody reads would be deleted only afterwards
