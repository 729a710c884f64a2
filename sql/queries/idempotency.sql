-- name: ClaimIdempotencyKey :one
SELECT * FROM claim_idempotency_key(@key);

-- name: RecordIdempotentAnswer :exec
WITH expired AS (
    DELETE FROM idempotency_keys
    WHERE org_id = current_org_id() AND account_id = current_account_id() AND key = @key AND created_at <= now() - interval '24 hours'
    RETURNING id
)
INSERT INTO idempotency_keys (org_id, account_id, key, request, status, headers, body)
SELECT current_org_id(), current_account_id(), @key, @request, @status, @headers, sqlc.narg('body')
FROM (SELECT count(*) FROM expired) first; -- what nobody reads would be deleted only afterwards
