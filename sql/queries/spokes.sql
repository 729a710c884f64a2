-- name: RegisterSpoke :one
-- Who registers a name again is the same spoke on a new connection: the epoch rises.
INSERT INTO spokes AS s (org_id, name, account_id, version, lease_seconds, grace_seconds, lease_expires_at, data, metadata)
VALUES (current_org_id(), @name, current_account_id(), @version, @lease_seconds, @grace_seconds, now() + make_interval(secs => @lease_seconds::integer), @data, @metadata)
ON CONFLICT (org_id, name) DO UPDATE SET
    status = 'connected', epoch = s.epoch + 1, account_id = coalesce(s.account_id, excluded.account_id),
    version = excluded.version, lease_seconds = excluded.lease_seconds, grace_seconds = excluded.grace_seconds,
    lease_expires_at = excluded.lease_expires_at, take_expires_at = NULL, connected_at = now(), disconnected_at = NULL,
    data = excluded.data, metadata = excluded.metadata
RETURNING *;

-- name: GetSpoke :one
SELECT * FROM spokes WHERE org_id = current_org_id() AND id = @id;

-- name: ListSpokes :many
SELECT * FROM spokes
WHERE org_id = current_org_id()
  AND name > @after_name
  AND (sqlc.narg('status')::text IS NULL OR status = sqlc.narg('status'))
  AND (sqlc.narg('account_id')::uuid IS NULL OR account_id = sqlc.narg('account_id'))
ORDER BY name
LIMIT @row_limit;

-- name: HeartbeatSpoke :one
UPDATE spokes s SET status = 'connected', lease_expires_at = greatest(s.lease_expires_at, now() + make_interval(secs => s.lease_seconds))
FROM hold_spoke(@id, @epoch) h
WHERE s.org_id = current_org_id() AND s.id = h.id
RETURNING s.*;

-- name: DisconnectSpoke :one
UPDATE spokes s SET status = 'disconnected', disconnected_at = now(), take_expires_at = NULL
FROM hold_spoke(@id, @epoch) h
WHERE s.org_id = current_org_id() AND s.id = h.id
RETURNING s.*;

-- name: PutOperations :many
SELECT qualified_name::text AS qualified_name, change::text AS change FROM put_operations(@spoke_id, @epoch, @operations);

-- name: ListOperations :many
SELECT * FROM operation_specs
WHERE org_id = current_org_id()
  AND qualified_name > @after_name
  AND (sqlc.narg('spoke_id')::uuid IS NULL OR spoke_id = sqlc.narg('spoke_id'))
  AND (sqlc.narg('namespace')::text IS NULL OR namespace = sqlc.narg('namespace'))
  AND (sqlc.narg('name')::text IS NULL OR name = sqlc.narg('name'))
  AND (sqlc.narg('kind')::text IS NULL OR kind = sqlc.narg('kind'))
ORDER BY qualified_name
LIMIT @row_limit;

-- name: GetOperation :one
-- By either name (W04). Of several spokes that offer an unqualified one, a connected one, always the same.
SELECT o.* FROM operation_specs o
JOIN spokes s ON s.org_id = o.org_id AND s.id = o.spoke_id
WHERE o.org_id = current_org_id()
  AND (o.qualified_name = @name OR o.namespace = split_part(@name, '.', 1) AND o.name = substr(@name, strpos(@name, '.') + 1))
ORDER BY s.status = 'connected' DESC, o.qualified_name
LIMIT 1;
