-- What the sweeper runs on behalf of nobody: functions that do one batch of what is due, and say how many rows that was.

-- name: RecordKeyUses :exec
SELECT record_key_uses(@org_ids::uuid[], @key_ids::uuid[], @times::timestamptz[]);

-- name: PurgeOrganizations :one
SELECT purge_organizations(@row_limit);

-- name: PurgeAuditLogs :one
SELECT purge_audit_logs(@row_limit);

-- name: PurgeIdempotencyKeys :one
SELECT purge_idempotency_keys(@row_limit);

-- name: SweepSpokes :one
SELECT sweep_spokes(@row_limit);

-- name: SweepCalls :one
SELECT sweep_calls(@row_limit);

-- name: PurgeCalls :one
SELECT purge_calls(@row_limit);

-- name: PurgeCallPayloads :one
SELECT purge_call_payloads(@row_limit);
