-- name: CreateAnomalyType :one
INSERT INTO anomaly_types (org_id, name, severity, description, metadata)
VALUES (current_org_id(), @name, coalesce(sqlc.narg('severity')::text, 'medium'), @description, @metadata)
RETURNING *;

-- name: GetAnomalyType :one
SELECT * FROM anomaly_types WHERE org_id = current_org_id() AND id = @id;

-- name: ListAnomalyTypes :many
SELECT * FROM anomaly_types
WHERE org_id = current_org_id() AND name > @after_name
ORDER BY name
LIMIT @row_limit;

-- name: UpdateAnomalyType :one
UPDATE anomaly_types SET
    severity    = coalesce(sqlc.narg('severity'), severity),
    description = coalesce(sqlc.narg('description'), description),
    metadata    = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
RETURNING *;

-- name: DeleteAnomalyType :execrows
DELETE FROM anomaly_types
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision);

-- name: ReportDetection :one
-- What is open already is counted up. No row where there is no such session.
INSERT INTO detections AS d (org_id, project_id, session_id, anomaly_type, severity, evidence, metadata)
SELECT s.org_id, s.project_id, s.id, @anomaly_type, coalesce(sqlc.narg('severity')::text, a.severity, 'medium'), @evidence, @metadata
FROM sessions s LEFT JOIN anomaly_types a ON a.org_id = s.org_id AND a.name = @anomaly_type
WHERE s.org_id = current_org_id() AND s.id = @session_id
ON CONFLICT (org_id, session_id, anomaly_type) WHERE status <> 'resolved' DO UPDATE SET
    count        = d.count + 1,
    last_seen_at = greatest(d.last_seen_at, clock_timestamp()),
    origin       = 'api',
    severity     = CASE WHEN severity_rank(excluded.severity) < severity_rank(d.severity) THEN d.severity ELSE excluded.severity END,
    evidence     = CASE excluded.evidence WHEN '{}' THEN d.evidence ELSE excluded.evidence END,
    metadata     = d.metadata || excluded.metadata
RETURNING *;

-- name: GetDetection :one
SELECT * FROM detections WHERE org_id = current_org_id() AND id = @id;

-- name: ListDetections :many
SELECT * FROM detections
WHERE org_id = current_org_id() AND id < @before_id
  AND (sqlc.narg('session_id')::uuid IS NULL OR session_id = sqlc.narg('session_id'))
  AND (sqlc.narg('project_id')::uuid IS NULL OR project_id = sqlc.narg('project_id'))
  AND (sqlc.narg('anomaly_type')::text IS NULL OR anomaly_type = sqlc.narg('anomaly_type'))
  AND (sqlc.narg('status')::text IS NULL OR status = sqlc.narg('status'))
  AND (sqlc.narg('severity')::text IS NULL OR severity = sqlc.narg('severity'))
ORDER BY id DESC
LIMIT @row_limit;

-- name: AcknowledgeDetection :one
UPDATE detections SET status = 'acknowledged' WHERE org_id = current_org_id() AND id = @id RETURNING *;

-- name: ResolveDetection :one
UPDATE detections SET status = 'resolved', resolution = @resolution::text, reason = @reason WHERE org_id = current_org_id() AND id = @id RETURNING *;

-- name: GetWatchPolicy :one
SELECT * FROM watch_policies WHERE org_id = current_org_id();

-- name: SetWatchPolicy :one
UPDATE watch_policies SET
    stall_minutes         = CASE WHEN @set_stall_minutes::boolean THEN sqlc.narg('stall_minutes') ELSE stall_minutes END,
    error_count           = CASE WHEN @set_error_count::boolean THEN sqlc.narg('error_count') ELSE error_count END,
    error_minutes         = coalesce(sqlc.narg('error_minutes'), error_minutes),
    model_minutes         = CASE WHEN @set_model_minutes::boolean THEN sqlc.narg('model_minutes') ELSE model_minutes END,
    model_baseline_hours  = coalesce(sqlc.narg('model_baseline_hours'), model_baseline_hours),
    model_turns           = coalesce(sqlc.narg('model_turns'), model_turns),
    model_error_percent   = coalesce(sqlc.narg('model_error_percent'), model_error_percent),
    model_latency_percent = coalesce(sqlc.narg('model_latency_percent'), model_latency_percent),
    reported_days         = CASE WHEN @set_reported_days::boolean THEN sqlc.narg('reported_days') ELSE reported_days END,
    metadata              = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE org_id = current_org_id()
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
RETURNING *;
