-- What the sweeper runs on behalf of nobody: functions that do one batch of what is due, and say how many rows that was.

-- name: RecordKeyUses :exec
SELECT record_key_uses(@org_ids::uuid[], @key_ids::uuid[], @times::timestamptz[]);

-- name: PurgeOrganizations :one
SELECT purge_organizations(@row_limit);

-- name: PurgeAuditLogs :one
SELECT purge_audit_logs(@row_limit);

-- name: ExpireSessions :one
SELECT expire_sessions(@row_limit);

-- name: PurgeDeletedSessions :one
SELECT purge_deleted_sessions(@row_limit);

-- name: PurgeIdempotencyKeys :one
SELECT purge_idempotency_keys(@row_limit);

-- name: FoldPartDeltas :one
SELECT fold_part_deltas(@row_limit);

-- name: PurgeEvents :one
SELECT purge_events(@row_limit);

-- name: NumberEvents :one
SELECT number_events(@holder, @row_limit);

-- name: LeaveEventOffice :exec
SELECT leave_event_office(@holder);

-- name: EventPositions :many
SELECT p.org_id::uuid AS org_id, p.last_position::bigint AS last_position FROM event_positions(@org_ids::uuid[]) p;

-- name: ReturnExpiredTasks :one
SELECT return_expired_tasks(@row_limit);

-- name: SweepSpokes :one
SELECT sweep_spokes(@row_limit);

-- name: SweepCalls :one
SELECT sweep_calls(@row_limit);

-- name: PurgeCalls :one
SELECT purge_calls(@row_limit);

-- name: PurgeCallPayloads :one
SELECT purge_call_payloads(@row_limit);

-- name: WatchSessions :one
SELECT watch_sessions(@row_limit);
