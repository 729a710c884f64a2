-- name: CreateClient :one
INSERT INTO clients (org_id, type, schema_version, name, description, enabled, config, valid, validated_at, metadata)
VALUES (current_org_id(), @type, @schema_version, @name, @description, @enabled, @config, true, clock_timestamp(), @metadata)
RETURNING *;

-- name: GetClient :one
SELECT * FROM clients WHERE org_id = current_org_id() AND id = @id;

-- name: ListClients :many
SELECT * FROM clients
WHERE org_id = current_org_id()
  AND name > @after_name
  AND (sqlc.narg('name')::text IS NULL OR name = sqlc.narg('name'))
  AND (sqlc.narg('type')::text IS NULL OR type = sqlc.narg('type'))
  AND (sqlc.narg('enabled')::boolean IS NULL OR enabled = sqlc.narg('enabled'))
  AND (sqlc.narg('valid')::boolean IS NULL OR valid = sqlc.narg('valid'))
ORDER BY name
LIMIT @row_limit;

-- name: PatchClientConfig :one
-- What the config would be, to be judged before UpdateClient writes it. Nothing is changed.
SELECT type, revision, jsonb_merge_patch(config, @config_patch::jsonb)::jsonb AS config
FROM clients WHERE org_id = current_org_id() AND id = @id;

-- name: UpdateClient :one
-- A config comes with the version of the schema that has judged it, and with the revision that it was made from.
UPDATE clients SET
    name           = coalesce(sqlc.narg('name'), name),
    description    = coalesce(sqlc.narg('description'), description),
    enabled        = coalesce(sqlc.narg('enabled'), enabled),
    config         = coalesce(sqlc.narg('config'), config),
    schema_version = coalesce(sqlc.narg('schema_version'), schema_version),
    valid          = CASE WHEN sqlc.narg('config')::jsonb IS NULL THEN valid ELSE true END,
    validated_at   = CASE WHEN sqlc.narg('config')::jsonb IS NULL THEN validated_at ELSE clock_timestamp() END,
    metadata       = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
RETURNING *;

-- name: DeleteClient :execrows
DELETE FROM clients
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision);

-- name: ListClientsToValidate :many
SELECT id, name, type, config, valid FROM clients
WHERE org_id = current_org_id() AND id > @after_id
ORDER BY id
LIMIT @row_limit;

-- name: SetClientsValid :execrows
-- The verdicts on configs as they were read: one that has changed since is judged by who changed it.
UPDATE clients c SET valid = v.valid, validated_at = clock_timestamp()
FROM (SELECT unnest(@ids::uuid[]) AS id, unnest(@valid::boolean[]) AS valid, unnest(@configs::jsonb[]) AS config) v
WHERE c.org_id = current_org_id() AND c.id = v.id AND c.config::text = v.config::text AND c.valid <> v.valid;


-- Secrets ----------------------------------------------------------------------------------------------------------

-- name: PutClientSecret :one
-- No row: there is no such client, or the ciphertext is bound to another organisation than the caller's. An absent metadata leaves what is there.
INSERT INTO client_secrets AS s (org_id, client_id, name, key_version, ciphertext, metadata)
SELECT c.org_id, c.id, @name, @key_version::integer, @ciphertext::bytea, coalesce(sqlc.narg('metadata')::jsonb, '{}')
FROM clients c WHERE c.org_id = current_org_id() AND c.org_id = @bound_org_id AND c.id = @client_id
ON CONFLICT (org_id, client_id, name) DO UPDATE SET
    key_version      = excluded.key_version,
    ciphertext       = excluded.ciphertext,
    value_changed_at = greatest(clock_timestamp(), s.value_changed_at + interval '1 microsecond'),
    metadata         = coalesce(sqlc.narg('metadata')::jsonb, s.metadata)
RETURNING id, client_id, name, key_version, value_changed_at, metadata, revision, created_at, updated_at, (xmax = 0)::boolean AS created;

-- name: GetClientSecret :one
SELECT id, client_id, name, key_version, value_changed_at, metadata, revision, created_at, updated_at FROM client_secrets
WHERE org_id = current_org_id() AND client_id = @client_id AND name = @name;

-- name: ListClientSecrets :many
SELECT id, client_id, name, key_version, value_changed_at, metadata, revision, created_at, updated_at FROM client_secrets
WHERE org_id = current_org_id() AND client_id = @client_id AND name > @after_name
ORDER BY name
LIMIT @row_limit;

-- name: RevealClientSecret :one
-- W12: and puts on record that it was revealed.
SELECT id, org_id, client_id, name, key_version, ciphertext, value_changed_at, record_secret_reveal(client_id, id, name)::boolean AS recorded FROM client_secrets
WHERE org_id = current_org_id() AND client_id = @client_id AND name = @name;

-- name: DeleteClientSecret :execrows
DELETE FROM client_secrets
WHERE org_id = current_org_id() AND client_id = @client_id AND name = @name
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision);

-- name: ReencryptClientSecret :execrows
-- On reveal. Not where the sweep, or another reveal, is at it: nobody who reads waits.
UPDATE client_secrets c SET key_version = @key_version, ciphertext = @ciphertext
WHERE c.org_id = current_org_id() AND c.ciphertext = @old_ciphertext AND c.id = (
    SELECT s.id FROM client_secrets s WHERE s.org_id = current_org_id() AND s.id = @id FOR NO KEY UPDATE SKIP LOCKED);


-- Encryption keys and rotation -------------------------------------------------------------------------------------

-- name: ListEncryptionKeys :many
SELECT version, fingerprint, created_at, count_secrets_under(version)::bigint AS secrets FROM encryption_keys ORDER BY version;

-- name: ListOtherEncryptionKeys :many
-- All but these: the keys that a hub lacks, or that a rotation leads away from.
SELECT version, fingerprint, count_secrets_under(version)::bigint AS secrets FROM encryption_keys
WHERE version <> ALL (@held::integer[]) ORDER BY version;

-- name: RemoveEncryptionKey :one
SELECT remove_encryption_key(@version)::boolean;

-- name: StartSecretRotation :one
SELECT start_secret_rotation(@target_version)::uuid;

-- name: GetSecretRotation :one
SELECT r.*, (SELECT coalesce(sum(count_secrets_under(k.version)), 0) FROM encryption_keys k WHERE k.version <> r.target_version)::bigint AS remaining
FROM secret_rotations r WHERE r.id = @id;

-- name: GetRunningSecretRotation :one
SELECT * FROM secret_rotations WHERE status = 'running';

-- name: ListOrgsWithSecretsUnder :many
SELECT orgs_with_secrets_under(@key_version)::uuid AS org_id;

-- name: LockSecretsToRotate :many
-- A batch of the sweep. What another replica is at is left to it.
SELECT id, org_id, client_id, name, key_version, ciphertext FROM client_secrets
WHERE org_id = current_org_id() AND key_version = @key_version AND id > @after_id
ORDER BY id
LIMIT @row_limit
FOR NO KEY UPDATE SKIP LOCKED;

-- name: RotateSecrets :execrows
-- Only what still is as it was read: a version alone as guard would restore an old value over one that was put meanwhile.
UPDATE client_secrets s SET key_version = @target_version, ciphertext = n.ciphertext
FROM (SELECT unnest(@ids::uuid[]) AS id, unnest(@old_ciphertexts::bytea[]) AS old_ciphertext, unnest(@ciphertexts::bytea[]) AS ciphertext) n
WHERE s.org_id = current_org_id() AND s.id = n.id AND s.ciphertext = n.old_ciphertext;

-- name: AdvanceSecretRotation :exec
SELECT advance_secret_rotation(@id, @rotated);

-- name: CompleteSecretRotation :one
SELECT complete_secret_rotation(@id, @failed)::boolean;


-- At the start -----------------------------------------------------------------------------------------------------

-- name: RegisterClientTypes :exec
SELECT register_client_types(@types::text[], @schema_versions::integer[], @schemas::jsonb[]);

-- name: RegisterEncryptionKeys :exec
SELECT register_encryption_keys(@versions::integer[], @fingerprints::bytea[]);

-- name: ListOrgsWithClients :many
SELECT orgs_with_clients()::uuid AS org_id;
