-- name: ListAuditLogs :many
SELECT * FROM audit_logs
WHERE chain_id = audit_chain_of(@platform)
  AND (sqlc.narg('before')::timestamptz IS NULL OR created_at < sqlc.narg('before'))
  AND (sqlc.narg('owner_id')::uuid IS NULL OR owner_id = sqlc.narg('owner_id'))
  AND (sqlc.narg('api_key_id')::uuid IS NULL OR api_key_id = sqlc.narg('api_key_id'))
  AND (sqlc.narg('acting_session_id')::uuid IS NULL OR acting_session_id = sqlc.narg('acting_session_id'))
  AND (sqlc.narg('target_id')::uuid IS NULL OR target_id = sqlc.narg('target_id'))
  AND (sqlc.narg('action')::text IS NULL OR action = sqlc.narg('action'))
  AND (sqlc.narg('target_type')::text IS NULL OR target_type = sqlc.narg('target_type'))
  AND (sqlc.narg('since')::timestamptz IS NULL OR created_at >= sqlc.narg('since'))
  AND (sqlc.narg('until')::timestamptz IS NULL OR created_at < sqlc.narg('until'))
ORDER BY created_at DESC
LIMIT @row_limit;

-- name: ExportAuditLogs :many
SELECT * FROM audit_logs
WHERE chain_id = audit_chain_of(@platform)
  AND created_at > @after
  AND (sqlc.narg('owner_id')::uuid IS NULL OR owner_id = sqlc.narg('owner_id'))
  AND (sqlc.narg('api_key_id')::uuid IS NULL OR api_key_id = sqlc.narg('api_key_id'))
  AND (sqlc.narg('acting_session_id')::uuid IS NULL OR acting_session_id = sqlc.narg('acting_session_id'))
  AND (sqlc.narg('target_id')::uuid IS NULL OR target_id = sqlc.narg('target_id'))
  AND (sqlc.narg('action')::text IS NULL OR action = sqlc.narg('action'))
  AND (sqlc.narg('target_type')::text IS NULL OR target_type = sqlc.narg('target_type'))
  AND (sqlc.narg('since')::timestamptz IS NULL OR created_at >= sqlc.narg('since'))
  AND (sqlc.narg('until')::timestamptz IS NULL OR created_at < sqlc.narg('until'))
ORDER BY created_at
LIMIT @row_limit;

-- name: VerifyAuditLog :one
SELECT * FROM verify_audit_chain(audit_chain_of(@platform));

-- name: GetRetentionPolicy :one
-- With how far the removal of calls has come.
SELECT sqlc.embed(r),
       coalesce((SELECT c.created_at FROM calls c WHERE c.org_id = r.org_id ORDER BY c.id LIMIT 1), 'epoch')::timestamptz AS oldest_call_at,
       coalesce((SELECT c.created_at FROM calls c WHERE c.org_id = r.org_id AND c.payloads_expired_at IS NULL ORDER BY c.id LIMIT 1), 'epoch')::timestamptz AS oldest_payloads_at
FROM retention_policies r WHERE r.org_id = current_org_id();

-- name: SetRetentionPolicy :one
UPDATE retention_policies r SET
    audit_days = CASE WHEN @set_audit_days::boolean THEN sqlc.narg('audit_days') ELSE audit_days END,
    session_days = CASE WHEN @set_session_days::boolean THEN sqlc.narg('session_days') ELSE session_days END,
    call_days  = CASE WHEN @set_call_days::boolean THEN sqlc.narg('call_days') ELSE call_days END,
    call_payload_days  = CASE WHEN @set_call_payload_days::boolean THEN sqlc.narg('call_payload_days') ELSE call_payload_days END,
    call_payload_limit = coalesce(sqlc.narg('call_payload_limit'), call_payload_limit),
    metadata   = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE org_id = current_org_id()
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
RETURNING sqlc.embed(r),
       coalesce((SELECT c.created_at FROM calls c WHERE c.org_id = r.org_id ORDER BY c.id LIMIT 1), 'epoch')::timestamptz AS oldest_call_at,
       coalesce((SELECT c.created_at FROM calls c WHERE c.org_id = r.org_id AND c.payloads_expired_at IS NULL ORDER BY c.id LIMIT 1), 'epoch')::timestamptz AS oldest_payloads_at;
