-- name: FindOperation :one
SELECT * FROM find_operation(@name);

-- name: EnqueueCall :one
SELECT * FROM enqueue_call(@id, @spec_id, @spec_revision, @pinned, sqlc.narg('request_id')::text, sqlc.narg('parent_id')::uuid, sqlc.narg('session_id')::uuid,
    @timeout_seconds, @input, @metadata, @key_version, @ciphertext);

-- name: TakeCalls :many
SELECT coalesce(held, false)::boolean AS held, coalesce(stopped, false)::boolean AS stopped, coalesce(id, '00000000-0000-0000-0000-000000000000')::uuid AS id,
       coalesce(operation, '')::text AS operation, coalesce(attempt, 0)::integer AS attempt,
       coalesce(parent_id, '00000000-0000-0000-0000-000000000000')::uuid AS parent_id, coalesce(session_id, '00000000-0000-0000-0000-000000000000')::uuid AS session_id, coalesce(caller_account_id, '00000000-0000-0000-0000-000000000000')::uuid AS caller_account_id,
       coalesce(identity, '{}')::jsonb AS identity, coalesce(metadata, '{}')::jsonb AS metadata,
       coalesce(deadline_at, 'epoch')::timestamptz AS deadline_at, coalesce(key_version, 0)::integer AS key_version, coalesce(ciphertext, '')::bytea AS ciphertext
FROM take_calls(@spoke_id, @epoch, @max_calls, @max_bytes, @wait_seconds);

-- name: LeaveTake :exec
-- Whose take was cut off is not ready, and lives for no longer than its lease, unless it takes again by now.
UPDATE spokes SET take_expires_at = NULL, lease_expires_at = least(lease_expires_at, now() + make_interval(secs => lease_seconds))
WHERE org_id = current_org_id() AND id = @id AND epoch = @epoch AND take_expires_at = @take_expires_at;

-- name: StepCall :one
SELECT * FROM step_call(@id, @spoke_id, @epoch, @status, sqlc.narg('output')::jsonb, sqlc.narg('error')::jsonb, sqlc.narg('error_code')::text, sqlc.narg('key_version')::integer, sqlc.narg('ciphertext')::bytea);

-- name: GetOutputSchema :one
-- What the output of a call that this spoke holds must be; NULL where its operation does not say, or is gone.
SELECT o.id, o.revision, o.output_schema FROM calls c
LEFT JOIN operation_specs o ON o.org_id = c.org_id AND o.spoke_id = c.spoke_id
    AND o.namespace = split_part(c.operation, '.', 1) AND o.name = substr(c.operation, strpos(c.operation, '.') + 1)
WHERE c.org_id = current_org_id() AND c.id = @id;

-- name: AbortCall :one
SELECT * FROM abort_call(@id, sqlc.narg('reason')::text);

-- name: FetchOutput :one
SELECT coalesce(key_version, 0)::integer AS key_version, coalesce(ciphertext, '')::bytea AS ciphertext FROM fetch_output(@call_id);

-- name: FindWork :many
SELECT find_work(@org_ids::uuid[], @ids::uuid[])::uuid AS id;

-- name: GetCall :one
SELECT * FROM calls WHERE org_id = current_org_id() AND id = @id;

-- name: GetCallByRequest :one
SELECT * FROM calls WHERE org_id = current_org_id() AND request_id = @request_id::text;

-- name: ListCalls :many
SELECT * FROM calls
WHERE org_id = current_org_id()
  AND id < @before_id
  AND (sqlc.narg('operation')::text IS NULL OR operation = sqlc.narg('operation'))
  AND (sqlc.narg('status')::text IS NULL OR status = sqlc.narg('status'))
  AND (sqlc.narg('caller_account_id')::uuid IS NULL OR caller_account_id = sqlc.narg('caller_account_id'))
  AND (sqlc.narg('session_id')::uuid IS NULL OR session_id = sqlc.narg('session_id'))
  AND (sqlc.narg('spoke_id')::uuid IS NULL OR spoke_id = sqlc.narg('spoke_id'))
  AND (sqlc.narg('parent_id')::uuid IS NULL OR parent_id = sqlc.narg('parent_id'))
  AND (sqlc.narg('request_id')::text IS NULL OR request_id = sqlc.narg('request_id'))
ORDER BY id DESC
LIMIT @row_limit;

-- name: RecordCall :one
-- Idempotent by request id. What is older than what is known (running, of a call that is over) changes nothing.
INSERT INTO calls AS c (org_id, request_id, routed, operation, kind, status, parent_id, session_id, redact_paths, payload_limit, input, output, error, error_code, ended_by, started_at, ended_at, metadata)
VALUES (current_org_id(), @request_id::text, false, @operation, sqlc.narg('kind'), @status, sqlc.narg('parent_id'), sqlc.narg('session_id'), @redact_paths, sqlc.narg('payload_limit'),
        sqlc.narg('input'), sqlc.narg('output'), sqlc.narg('error'), sqlc.narg('error_code'), sqlc.narg('ended_by'), sqlc.narg('started_at'), sqlc.narg('ended_at'), @metadata)
ON CONFLICT (org_id, request_id) DO UPDATE SET
    routed     = excluded.routed,
    status     = CASE WHEN c.ended_at IS NOT NULL AND excluded.ended_at IS NULL OR c.status = 'running' AND excluded.status = 'pending' THEN c.status ELSE excluded.status END,
    kind       = coalesce(c.kind, excluded.kind),
    input      = coalesce(c.input, excluded.input),
    output     = coalesce(c.output, excluded.output),
    error      = coalesce(c.error, excluded.error),
    error_code = coalesce(c.error_code, excluded.error_code),
    ended_by   = coalesce(c.ended_by, excluded.ended_by),
    started_at = coalesce(c.started_at, excluded.started_at),
    ended_at   = coalesce(c.ended_at, excluded.ended_at),
    metadata   = c.metadata || excluded.metadata
WHERE c.operation = excluded.operation
RETURNING sqlc.embed(c), (xmax = 0)::boolean AS created;

-- name: GetCallTree :many
-- A call and what it led to, breadth first: so deep and so many at most. Edges of other types between them come with their source.
WITH RECURSIVE tree AS (
    SELECT c.id, 0 AS depth, ARRAY[c.id] AS path FROM calls c WHERE c.org_id = current_org_id() AND c.id = @id
    UNION ALL
    SELECT c.id, t.depth + 1, t.path || c.id
    FROM tree t JOIN calls c ON c.org_id = current_org_id() AND c.parent_id = t.id
    WHERE t.depth < @max_depth::integer AND c.id <> ALL (t.path)
), bounded AS (
    SELECT t.id, t.depth FROM tree t LIMIT @row_limit
)
SELECT sqlc.embed(c), b.depth::integer AS depth, coalesce((
    SELECT jsonb_agg(jsonb_build_object('sourceCallId', e.source_call_id, 'targetCallId', e.target_call_id, 'type', e.type, 'createdAt', e.created_at) ORDER BY e.target_call_id, e.type)
    FROM call_edge_rows e WHERE e.org_id = c.org_id AND e.source_call_id = c.id AND e.target_call_id IN (SELECT id FROM bounded)), '[]')::jsonb AS edges
FROM bounded b JOIN calls c ON c.org_id = current_org_id() AND c.id = b.id
ORDER BY b.depth, c.id;

-- name: AddCallEdges :many
WITH edge AS (
    SELECT unnest(@target_call_ids::uuid[]) AS target_call_id, unnest(@types::text[]) AS type
), added AS (
    INSERT INTO call_edge_rows (org_id, source_call_id, target_call_id, type)
    SELECT current_org_id(), @source_call_id::uuid, e.target_call_id, e.type FROM edge e ORDER BY e.target_call_id, e.type
    ON CONFLICT (org_id, source_call_id, target_call_id, type) DO NOTHING
    RETURNING source_call_id, target_call_id, type, created_at
)
SELECT source_call_id::uuid AS source_call_id, target_call_id::uuid AS target_call_id, type::text AS type, created_at::timestamptz AS created_at FROM added
UNION
SELECT r.source_call_id, r.target_call_id, r.type, r.created_at FROM call_edge_rows r JOIN edge e ON e.target_call_id = r.target_call_id AND e.type = r.type
WHERE r.org_id = current_org_id() AND r.source_call_id = @source_call_id::uuid
ORDER BY 2, 3;

-- name: ListCallEdges :many
-- Of both directions.
SELECT source_call_id::uuid AS source_call_id, target_call_id::uuid AS target_call_id, type::text AS type, created_at::timestamptz AS created_at FROM (
    SELECT e.* FROM call_edges e WHERE e.org_id = current_org_id() AND e.source_call_id = @call_id::uuid
    UNION ALL
    SELECT e.* FROM call_edges e WHERE e.org_id = current_org_id() AND e.target_call_id = @call_id::uuid
) edges
WHERE (source_call_id, target_call_id, type) > (@after_source::uuid, @after_target::uuid, @after_type::text)
ORDER BY 1, 2, 3
LIMIT @row_limit;

-- name: GetCallStats :many
-- Calls that started in the range, and those made in it that never did.
SELECT operation, count(*) AS calls,
       count(*) FILTER (WHERE status = 'completed') AS completed,
       count(*) FILTER (WHERE status = 'failed') AS failed,
       count(*) FILTER (WHERE status = 'aborted') AS aborted,
       coalesce(percentile_cont(0.50) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at - started_at) * 1000) FILTER (WHERE ended_at IS NOT NULL AND started_at IS NOT NULL), -1)::float8 AS p50,
       coalesce(percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at - started_at) * 1000) FILTER (WHERE ended_at IS NOT NULL AND started_at IS NOT NULL), -1)::float8 AS p95,
       coalesce(percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at - started_at) * 1000) FILTER (WHERE ended_at IS NOT NULL AND started_at IS NOT NULL), -1)::float8 AS p99
FROM calls
WHERE org_id = current_org_id()
  AND (started_at >= @since::timestamptz AND started_at < @until::timestamptz OR started_at IS NULL AND created_at >= @since::timestamptz AND created_at < @until::timestamptz)
  AND (sqlc.narg('operation')::text IS NULL OR operation = sqlc.narg('operation'))
GROUP BY operation
ORDER BY operation
LIMIT 1000;
