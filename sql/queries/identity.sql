-- name: GetMe :one
SELECT sqlc.embed(a), sqlc.embed(o), m.membership_level,
       k.id, k.account_id, k.name, k.scopes, k.resources, k.tags, k.enabled, k.expires_at, k.revoked_at, k.rotated_to_id, k.last_used_at, k.metadata, k.revision, k.created_at, k.updated_at
FROM api_keys k
JOIN organization_members m ON m.org_id = k.org_id AND m.account_id = k.account_id
JOIN organizations o ON o.id = k.org_id
JOIN accounts a ON a.id = k.account_id
WHERE k.org_id = current_org_id() AND k.id = current_key_id();


-- name: CreateAccount :one
WITH a AS (
    INSERT INTO accounts (kind, home_org_id, display_name, email, data, metadata)
    VALUES (@kind, current_org_id(), @display_name, sqlc.narg('email'), @data, @metadata)
    RETURNING *
), m AS (
    INSERT INTO organization_members (org_id, account_id, membership_level) SELECT current_org_id(), a.id, @membership_level::text FROM a
)
SELECT * FROM a;

-- name: GetAccount :one
SELECT * FROM accounts WHERE id = @id AND kind <> 'system';

-- name: ListAccounts :many
SELECT a.* FROM organization_members m
JOIN accounts a ON a.id = m.account_id
WHERE m.org_id = current_org_id()
  AND m.account_id > @after_id
  AND (sqlc.narg('kind')::text IS NULL OR a.kind = sqlc.narg('kind'))
  AND (sqlc.narg('status')::text IS NULL OR a.status = sqlc.narg('status'))
ORDER BY m.account_id
LIMIT @row_limit;

-- name: SearchAccounts :many
SELECT * FROM search_accounts(@text, @row_limit);

-- name: UpdateAccount :one
UPDATE accounts SET
    display_name = coalesce(sqlc.narg('display_name'), display_name),
    email        = CASE WHEN @set_email::boolean THEN sqlc.narg('email') ELSE email END,
    access_level = coalesce(sqlc.narg('access_level'), access_level),
    data         = jsonb_merge_patch(data, sqlc.narg('data_patch')::jsonb),
    metadata     = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE id = @id AND kind <> 'system'
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
RETURNING *;

-- name: DeleteAccount :execrows
DELETE FROM accounts WHERE id = @id AND kind <> 'system' AND revision = coalesce(sqlc.narg('if_match')::integer, revision);

-- name: SetAccountStatus :one
UPDATE accounts SET status = @status WHERE id = @id AND kind <> 'system' RETURNING *;

-- name: ListOwnedOrganizations :many
SELECT * FROM organizations WHERE owner_id = @owner_id AND deleted_at IS NULL ORDER BY slug;


-- name: CreateOrganization :one
SELECT * FROM create_organization(@slug, @name, sqlc.narg('owner_id')::uuid, @data, @metadata, @key_id, @key_hash);

-- name: GetOrganization :one
SELECT * FROM organizations WHERE id = @id;

-- name: ListOrganizations :many
SELECT * FROM organizations WHERE slug > @after_slug ORDER BY slug LIMIT @row_limit;

-- name: UpdateOrganization :one
UPDATE organizations SET
    slug     = coalesce(sqlc.narg('slug'), slug),
    name     = coalesce(sqlc.narg('name'), name),
    data     = jsonb_merge_patch(data, sqlc.narg('data_patch')::jsonb),
    metadata = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE id = @id AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
RETURNING *;

-- name: DeleteOrganization :execrows
UPDATE organizations SET deleted_at = coalesce(deleted_at, now())
WHERE id = @id AND revision = coalesce(sqlc.narg('if_match')::integer, revision);

-- name: TransferOrganization :one
SELECT * FROM transfer_organization(@id, @account_id);


-- name: AddMember :one
INSERT INTO organization_members (org_id, account_id, membership_level, metadata)
VALUES (current_org_id(), @account_id, @membership_level, @metadata)
RETURNING *;

-- name: GetMember :one
SELECT sqlc.embed(m), a.kind, a.status, a.display_name
FROM organization_members m JOIN accounts a ON a.id = m.account_id
WHERE m.org_id = current_org_id() AND m.account_id = @account_id;

-- name: ListMembers :many
SELECT sqlc.embed(m), a.kind, a.status, a.display_name
FROM organization_members m JOIN accounts a ON a.id = m.account_id
WHERE m.org_id = current_org_id()
  AND m.account_id > @after_id
  AND (sqlc.narg('membership_level')::text IS NULL OR m.membership_level = sqlc.narg('membership_level'))
ORDER BY m.account_id
LIMIT @row_limit;

-- name: UpdateMember :one
WITH m AS (
    UPDATE organization_members SET
        membership_level = coalesce(sqlc.narg('membership_level')::text, membership_level),
        metadata         = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
    WHERE org_id = current_org_id() AND account_id = @account_id
      AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
    RETURNING *
)
SELECT m.*, a.kind, a.status, a.display_name FROM m JOIN accounts a ON a.id = m.account_id;

-- name: RemoveMember :execrows
DELETE FROM organization_members
WHERE org_id = current_org_id() AND account_id = @account_id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision);


-- name: CreateAPIKey :one
INSERT INTO api_keys (org_id, account_id, name, key_hash, scopes, resources, tags, expires_at, metadata)
VALUES (current_org_id(), coalesce(sqlc.narg('account_id')::uuid, current_account_id()), @name, @key_hash, @scopes, @resources, @tags, sqlc.narg('expires_at'), @metadata)
RETURNING id, account_id, name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, last_used_at, metadata, revision, created_at, updated_at;

-- name: GetAPIKey :one
SELECT id, account_id, name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, last_used_at, metadata, revision, created_at, updated_at
FROM api_keys WHERE org_id = current_org_id() AND id = @id;

-- name: ListAPIKeys :many
SELECT id, account_id, name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, last_used_at, metadata, revision, created_at, updated_at
FROM api_keys
WHERE org_id = current_org_id()
  AND id > @after_id
  AND (sqlc.narg('account_id')::uuid IS NULL OR account_id = sqlc.narg('account_id'))
  AND (sqlc.narg('tag')::text IS NULL OR sqlc.narg('tag') = ANY (tags))
ORDER BY id
LIMIT @row_limit;

-- name: UpdateAPIKey :one
UPDATE api_keys SET
    name       = coalesce(sqlc.narg('name'), name),
    scopes     = coalesce(sqlc.narg('scopes')::text[], scopes),
    resources  = coalesce(sqlc.narg('resources')::text[], resources),
    tags       = coalesce(sqlc.narg('tags')::text[], tags),
    expires_at = CASE WHEN @set_expires_at::boolean THEN sqlc.narg('expires_at') ELSE expires_at END,
    metadata   = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
RETURNING id, account_id, name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, last_used_at, metadata, revision, created_at, updated_at;

-- name: RevokeAPIKey :one
UPDATE api_keys SET revoked_at = coalesce(revoked_at, now())
WHERE org_id = current_org_id() AND id = @id
RETURNING id, account_id, name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, last_used_at, metadata, revision, created_at, updated_at;

-- name: SetAPIKeyEnabled :one
UPDATE api_keys SET enabled = @enabled
WHERE org_id = current_org_id() AND id = @id
RETURNING id, account_id, name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, last_used_at, metadata, revision, created_at, updated_at;

-- name: RotateAPIKey :many
WITH old AS (
    SELECT k.org_id, k.id, k.account_id, k.name, k.scopes, k.resources, k.tags, k.metadata, k.expires_at, k.created_at
    FROM api_keys k WHERE k.org_id = current_org_id() AND k.id = @id FOR UPDATE
), made AS (
    INSERT INTO api_keys (org_id, id, account_id, name, key_hash, scopes, resources, tags, metadata, expires_at)
    SELECT old.org_id, @made_id, old.account_id, old.name, @key_hash, old.scopes, old.resources, old.tags, old.metadata,
           coalesce(sqlc.narg('expires_at')::timestamptz, CASE WHEN old.expires_at IS NOT NULL THEN least(now() + (old.expires_at - old.created_at), '9999-12-30T00:00:00Z') END)
    FROM old
    RETURNING id, account_id, name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, last_used_at, metadata, revision, created_at, updated_at
), replaced AS (
    UPDATE api_keys k SET rotated_to_id = made.id, expires_at = least(k.expires_at, now() + make_interval(secs => @grace_seconds))
    FROM made
    WHERE k.org_id = current_org_id() AND k.id = @id
    RETURNING k.id, k.account_id, k.name, k.scopes, k.resources, k.tags, k.enabled, k.expires_at, k.revoked_at, k.rotated_to_id, k.last_used_at, k.metadata, k.revision, k.created_at, k.updated_at
)
SELECT id, account_id, name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, last_used_at, metadata, revision, created_at, updated_at FROM made
UNION ALL
SELECT id, account_id, name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, last_used_at, metadata, revision, created_at, updated_at FROM replaced;
