-- Services: what agents talk to (clients), the schemas of their configurations (client types), their secrets and the keys that encrypt these.

CREATE FUNCTION acts_for_platform() RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN current_account_id() IS NULL OR is_platform_admin();
COMMENT ON FUNCTION acts_for_platform() IS 'X01: whether the hub itself is at work, for nobody, or a platform admin. Nobody else learns how many secrets others have, or which organisations there are.';


-- Client types ---------------------------------------------------------------------------------------------------

CREATE TABLE client_types (
    type           text        NOT NULL,
    schema_version integer     NOT NULL,
    schema         jsonb       NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT client_types_pkey PRIMARY KEY (type, schema_version),
    CONSTRAINT client_types_type_shape_check CHECK (type ~ '^[a-z][a-z0-9]*(-[a-z0-9]+)*$' AND char_length(type) <= 100),
    CONSTRAINT client_types_schema_version_check CHECK (schema_version >= 1),
    CONSTRAINT client_types_schema_object_check CHECK (jsonb_typeof(schema) = 'object')
);
COMMENT ON TABLE client_types IS 'C12: the kinds of clients, with every version of the JSON Schema (2020-12) of their config. Registered from the program''s files when it starts; a registered version never changes.';
COMMENT ON COLUMN client_types.type IS 'A breaking change is a new type: llm-provider-v2.';
COMMENT ON COLUMN client_types.schema_version IS 'C12: the newest is in force. Each accepts all that its predecessor accepted.';
COMMENT ON COLUMN client_types.schema IS 'The JSON Schema.';

CREATE FUNCTION register_client_types(p_types text[], p_schema_versions integer[], p_schemas jsonb[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_changed text;
BEGIN
    INSERT INTO client_types (type, schema_version, schema)
    SELECT * FROM unnest(p_types, p_schema_versions, p_schemas) ORDER BY 1, 2 -- in one order, so that replicas do not deadlock
    ON CONFLICT (type, schema_version) DO NOTHING;
    SELECT string_agg(format('%s/%s', c.type, c.schema_version), ', ') INTO v_changed
    FROM client_types c JOIN unnest(p_types, p_schema_versions, p_schemas) n(type, schema_version, schema)
        ON (n.type, n.schema_version) = (c.type, c.schema_version) AND n.schema <> c.schema;
    IF v_changed IS NOT NULL THEN
        PERFORM raise_rule('client_types_schema_frozen', format('These schemas are registered otherwise: %s. A change is a new version.', v_changed));
    END IF;
END $$;
COMMENT ON FUNCTION register_client_types(text[], integer[], jsonb[]) IS 'C12: adds the program''s schemas at its start, and refuses one that differs from what is registered under its version.';


-- Clients --------------------------------------------------------------------------------------------------------

CREATE TABLE clients (
    org_id         uuid        NOT NULL,
    id             uuid        NOT NULL DEFAULT hub_uuidv7(),
    type           text        NOT NULL,
    schema_version integer     NOT NULL,
    name           text        NOT NULL,
    description    text        NOT NULL DEFAULT '',
    enabled        boolean     NOT NULL DEFAULT true,
    config         jsonb       NOT NULL DEFAULT '{}',
    valid          boolean     NOT NULL DEFAULT false,
    validated_at   timestamptz,
    metadata       jsonb       NOT NULL DEFAULT '{}',
    revision       integer     NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT clients_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT clients_name_key UNIQUE (org_id, name),
    CONSTRAINT clients_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations (id) ON DELETE RESTRICT,
    CONSTRAINT clients_type_fkey FOREIGN KEY (type, schema_version) REFERENCES client_types (type, schema_version) ON DELETE RESTRICT,
    CONSTRAINT clients_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT clients_name_shape_check CHECK (name ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND char_length(name) <= 100),
    CONSTRAINT clients_description_length_check CHECK (char_length(description) <= 10000),
    CONSTRAINT clients_config_object_check CHECK (jsonb_typeof(config) = 'object'),
    CONSTRAINT clients_valid_is_validated_check CHECK (NOT valid OR validated_at IS NOT NULL),
    CONSTRAINT clients_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE clients IS 'What an organisation''s agents talk to: model providers, MCP servers, git forges, buckets, webhooks, HTTP APIs. What is secret about one is in client_secrets.';
COMMENT ON COLUMN clients.type IS 'C12: the kind, of client_types. Immutable.';
COMMENT ON COLUMN clients.schema_version IS 'C12: the version of the type''s schema that config was written against.';
COMMENT ON COLUMN clients.name IS 'Short name, unique in the organisation.';
COMMENT ON COLUMN clients.config IS 'C12: validated against the type''s schema when it is written through the API. Names secrets, never holds them. Strings are escaped (X07).';
COMMENT ON COLUMN clients.valid IS 'C12: the verdict on config of the schema in force. False as well while nobody has judged it: what is written past the API is judged at the next start, or by validateClients.';
COMMENT ON COLUMN clients.validated_at IS 'C12: when config was last judged and the verdict written; NULL when never.';
COMMENT ON COLUMN clients.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN clients.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT clients_org_id_fkey ON clients IS 'W12. Indexed by clients_name_key (W03).';
COMMENT ON CONSTRAINT clients_type_fkey ON clients IS 'C12: there is no client of an unknown type. client_types is only added to, so no index.';
COMMENT ON CONSTRAINT clients_id_version_check ON clients IS 'C02';
COMMENT ON CONSTRAINT clients_metadata_check ON clients IS 'W01';

CREATE INDEX clients_type_idx ON clients (org_id, type, name);
CREATE INDEX clients_invalid_idx ON clients (org_id, name) WHERE NOT valid;
COMMENT ON INDEX clients_invalid_idx IS 'C12: ?valid=false.';

CREATE FUNCTION doubt_client_config() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.valid := false;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION doubt_client_config() IS 'C12: config that changes without a verdict of its own is not valid until it is judged.';
CREATE TRIGGER clients_config_doubted BEFORE UPDATE ON clients
    FOR EACH ROW WHEN (OLD.config::text <> NEW.config::text AND OLD.validated_at IS NOT DISTINCT FROM NEW.validated_at)
    EXECUTE FUNCTION doubt_client_config();
COMMENT ON TRIGGER clients_config_doubted ON clients IS 'C12: also what psql writes.';
CREATE TRIGGER clients_touch BEFORE UPDATE ON clients
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER clients_identity_immutable BEFORE UPDATE ON clients
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.type, OLD.created_at) IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.type, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A client''s organisation, id, type and creation time');


-- Encryption keys (C11) ------------------------------------------------------------------------------------------

CREATE TABLE encryption_keys (
    version     integer     NOT NULL,
    fingerprint bytea       NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT encryption_keys_pkey PRIMARY KEY (version),
    CONSTRAINT encryption_keys_fingerprint_key UNIQUE (fingerprint),
    CONSTRAINT encryption_keys_version_check CHECK (version >= 1),
    CONSTRAINT encryption_keys_fingerprint_length_check CHECK (octet_length(fingerprint) = 32)
);
COMMENT ON TABLE encryption_keys IS 'C11: the versions of the key that encrypts secrets, for the whole platform. The keys themselves are in the environment or a file, never here.';
COMMENT ON COLUMN encryption_keys.version IS 'The number behind the v in HUB_ENCRYPTION_KEYS.';
COMMENT ON COLUMN encryption_keys.fingerprint IS 'SHA-256 of ''hub/encryption-key'', a zero byte and the key: tells keys apart and tells nothing of them, for they are 256 random bits.';
COMMENT ON CONSTRAINT encryption_keys_fingerprint_key ON encryption_keys IS 'C11: one key has one version: a rotation is to another key.';

CREATE FUNCTION register_encryption_keys(p_versions integer[], p_fingerprints bytea[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_wrong text;
BEGIN
    IF NOT acts_for_platform() THEN
        PERFORM raise_rule('encryption_keys_for_admins', 'The keys of the platform are for its admins.', '42501');
    END IF;
    SELECT string_agg(format('v%s has the fingerprint %s here and %s in the database', k.version, left(encode(n.fingerprint, 'hex'), 16), left(encode(k.fingerprint, 'hex'), 16)), '; ' ORDER BY k.version) INTO v_wrong
    FROM encryption_keys k JOIN unnest(p_versions, p_fingerprints) n(version, fingerprint) ON n.version = k.version AND n.fingerprint <> k.fingerprint;
    IF v_wrong IS NULL THEN
        INSERT INTO encryption_keys (version, fingerprint)
        SELECT * FROM unnest(p_versions, p_fingerprints) ORDER BY 1
        ON CONFLICT (version) DO NOTHING;
        SELECT string_agg(format('v%s', k.version), ', ') INTO v_wrong -- another replica was faster, with another key
        FROM encryption_keys k JOIN unnest(p_versions, p_fingerprints) n(version, fingerprint) ON n.version = k.version AND n.fingerprint <> k.fingerprint;
    END IF;
    IF v_wrong IS NOT NULL THEN
        PERFORM raise_rule('encryption_keys_fingerprint_known', format('Another key is known under this version: %s.', v_wrong));
    END IF;
END $$;
COMMENT ON FUNCTION register_encryption_keys(integer[], bytea[]) IS 'C11: adds the keys that a hub holds at its start, and refuses another key under a version that is known.';


-- Secrets (C11) --------------------------------------------------------------------------------------------------

CREATE TABLE client_secrets (
    org_id           uuid        NOT NULL,
    id               uuid        NOT NULL DEFAULT hub_uuidv7(),
    client_id        uuid        NOT NULL,
    name             text        NOT NULL,
    key_version      integer     NOT NULL,
    ciphertext       bytea       NOT NULL,
    value_changed_at timestamptz NOT NULL DEFAULT now(),
    metadata         jsonb       NOT NULL DEFAULT '{}',
    revision         integer     NOT NULL DEFAULT 1,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT client_secrets_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT client_secrets_name_key UNIQUE (org_id, client_id, name),
    CONSTRAINT client_secrets_client_id_fkey FOREIGN KEY (org_id, client_id) REFERENCES clients (org_id, id) ON DELETE CASCADE,
    CONSTRAINT client_secrets_key_version_fkey FOREIGN KEY (key_version) REFERENCES encryption_keys (version) ON DELETE RESTRICT,
    CONSTRAINT client_secrets_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT client_secrets_name_shape_check CHECK (name ~ '^[A-Za-z0-9_][A-Za-z0-9_.-]*$' AND char_length(name) <= 100),
    CONSTRAINT client_secrets_ciphertext_length_check CHECK (octet_length(ciphertext) BETWEEN 30 AND 65565),
    CONSTRAINT client_secrets_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE client_secrets IS 'C11: what a client needs and nobody may read: tokens, passwords, keys. Written by name, encrypted before it comes here, and given out by revealClientSecret alone.';
COMMENT ON COLUMN client_secrets.name IS 'C11: immutable, for it is part of what the ciphertext is bound to.';
COMMENT ON COLUMN client_secrets.key_version IS 'W07: which key encrypted the ciphertext. It stands here and nowhere else.';
COMMENT ON COLUMN client_secrets.ciphertext IS 'C11: 1 byte format (1), 12 bytes nonce, AES-256-GCM of the value, 16 bytes tag; bound to organisation, client, name and key version. docs/secrets.md has it to the letter.';
COMMENT ON COLUMN client_secrets.value_changed_at IS 'When the value was last put. Encrypting it anew under another key does not move it.';
COMMENT ON COLUMN client_secrets.metadata IS 'W01: opaque, one object per subsystem. Not encrypted.';
COMMENT ON COLUMN client_secrets.revision IS 'Counts changes, but for new encryptions of the same value: the ETag.';
COMMENT ON CONSTRAINT client_secrets_key_version_fkey ON client_secrets IS 'C11: a version in use cannot be removed from encryption_keys.';
COMMENT ON CONSTRAINT client_secrets_ciphertext_length_check ON client_secrets IS 'A value has 1 to 65,536 bytes.';
COMMENT ON CONSTRAINT client_secrets_id_version_check ON client_secrets IS 'C02';
COMMENT ON CONSTRAINT client_secrets_metadata_check ON client_secrets IS 'W01';

CREATE INDEX client_secrets_key_version_idx ON client_secrets (key_version, org_id, id);
COMMENT ON INDEX client_secrets_key_version_idx IS 'C11: the secrets that are still under a key: for the sweep, which takes them in this order, and for that foreign key.';

CREATE FUNCTION note_secret_value_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.value_changed_at := greatest(clock_timestamp(), OLD.value_changed_at + interval '1 microsecond');
    RETURN NEW;
END $$;
COMMENT ON FUNCTION note_secret_value_change() IS 'C11: another ciphertext under the same key is another value.';
CREATE TRIGGER client_secrets_altered BEFORE UPDATE ON client_secrets
    FOR EACH ROW WHEN (OLD.ciphertext <> NEW.ciphertext AND OLD.key_version = NEW.key_version AND OLD.value_changed_at = NEW.value_changed_at)
    EXECUTE FUNCTION note_secret_value_change();
COMMENT ON TRIGGER client_secrets_altered ON client_secrets IS 'C11, W12: whoever wrote it, so that it is a revision and on record. Its name comes before those of the triggers that look at value_changed_at.';
CREATE TRIGGER client_secrets_touch BEFORE UPDATE ON client_secrets
    FOR EACH ROW WHEN ((OLD.value_changed_at, OLD.metadata::text, OLD.revision) IS DISTINCT FROM (NEW.value_changed_at, NEW.metadata::text, NEW.revision))
    EXECUTE FUNCTION touch_row();
CREATE TRIGGER client_secrets_encrypted_anew BEFORE UPDATE ON client_secrets
    FOR EACH ROW WHEN ((OLD.key_version, OLD.ciphertext, OLD.updated_at) IS DISTINCT FROM (NEW.key_version, NEW.ciphertext, NEW.updated_at))
    EXECUTE FUNCTION set_updated_at();
COMMENT ON TRIGGER client_secrets_encrypted_anew ON client_secrets IS 'W22: another key moves updated_at, but is no new revision: an If-Match need not fail because keys rotate.';
CREATE TRIGGER client_secrets_identity_immutable BEFORE UPDATE ON client_secrets
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.client_id, OLD.name, OLD.created_at) IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.client_id, NEW.name, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A secret''s organisation, client, id, name and creation time');
COMMENT ON TRIGGER client_secrets_identity_immutable ON client_secrets IS 'C11: the ciphertext is bound to organisation, client and name.';


-- Rotation (C11) -------------------------------------------------------------------------------------------------

CREATE TABLE secret_rotations (
    id             uuid        NOT NULL DEFAULT hub_uuidv7(),
    target_version integer     NOT NULL,
    status         text        NOT NULL DEFAULT 'running',
    total          bigint      NOT NULL,
    rotated        bigint      NOT NULL DEFAULT 0,
    failed         bigint      NOT NULL DEFAULT 0,
    ended_at       timestamptz,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT secret_rotations_pkey PRIMARY KEY (id),
    CONSTRAINT secret_rotations_target_version_fkey FOREIGN KEY (target_version) REFERENCES encryption_keys (version) ON DELETE CASCADE,
    CONSTRAINT secret_rotations_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT secret_rotations_status_check CHECK (status IN ('running', 'completed', 'superseded')),
    CONSTRAINT secret_rotations_ended_has_time_check CHECK ((status = 'running') = (ended_at IS NULL)),
    CONSTRAINT secret_rotations_counts_check CHECK (total >= 0 AND rotated >= 0 AND failed >= 0)
);
COMMENT ON TABLE secret_rotations IS 'C11: sweeps that encrypt all secrets, of all organisations, under one key. The replicas of the hub work on the running one together; what is left to do is what the secrets themselves say, so any of them may be killed.';
COMMENT ON COLUMN secret_rotations.status IS 'running; completed: no secret that can be decrypted is left under another key; superseded: a rotation to another key was started.';
COMMENT ON COLUMN secret_rotations.total IS 'Secrets under other keys when it started.';
COMMENT ON COLUMN secret_rotations.rotated IS 'Secrets that the sweep has encrypted anew. Those that were revealed or put meanwhile are not among them.';
COMMENT ON COLUMN secret_rotations.failed IS 'Secrets that were left when it completed: their key is missing, or they are damaged.';
CREATE UNIQUE INDEX secret_rotations_running_key ON secret_rotations (status) WHERE status = 'running';
COMMENT ON INDEX secret_rotations_running_key IS 'C11: one at a time.';
CREATE INDEX secret_rotations_target_version_idx ON secret_rotations (target_version);

CREATE TRIGGER secret_rotations_touch BEFORE UPDATE ON secret_rotations
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER secret_rotations_ended_fixed BEFORE UPDATE ON secret_rotations
    FOR EACH ROW WHEN (OLD.status <> 'running') EXECUTE FUNCTION refuse_change('A rotation that has ended');

CREATE FUNCTION start_secret_rotation(p_target_version integer) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_id uuid;
BEGIN
    IF NOT acts_for_platform() THEN
        PERFORM raise_rule('encryption_keys_for_admins', 'The keys of the platform are for its admins.', '42501');
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('start_secret_rotation', 0)); -- two that start at once start one
    SELECT id INTO v_id FROM secret_rotations WHERE status = 'running' AND target_version = p_target_version;
    IF FOUND THEN
        RETURN v_id;
    END IF;
    UPDATE secret_rotations SET status = 'superseded', ended_at = clock_timestamp() WHERE status = 'running';
    INSERT INTO secret_rotations (target_version, total)
    SELECT p_target_version, count(*) FROM client_secrets WHERE key_version <> p_target_version
    RETURNING id INTO v_id;
    RETURN v_id;
END $$;
COMMENT ON FUNCTION start_secret_rotation(integer) IS 'C11: the running rotation to this key, or a new one, in place of one to another key.';

CREATE FUNCTION advance_secret_rotation(p_id uuid, p_rotated bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
BEGIN ATOMIC
    UPDATE secret_rotations SET rotated = rotated + p_rotated WHERE id = p_id AND status = 'running' AND acts_for_platform();
END;
COMMENT ON FUNCTION advance_secret_rotation(uuid, bigint) IS 'C11: counts a batch, in its transaction: what was killed was not counted.';

CREATE FUNCTION complete_secret_rotation(p_id uuid, p_failed bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    UPDATE secret_rotations SET status = 'completed', ended_at = clock_timestamp(), failed = p_failed
    WHERE id = p_id AND status = 'running' AND acts_for_platform()
      AND p_failed >= (SELECT count(*) FROM client_secrets s WHERE s.key_version <> target_version);
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION complete_secret_rotation(uuid, bigint) IS 'C11: ends the rotation, unless more secrets are left under other keys than those that cannot be decrypted: others may still be at work on them.';

CREATE FUNCTION orgs_with_secrets_under(p_version integer) RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
BEGIN ATOMIC
    SELECT DISTINCT org_id FROM client_secrets WHERE key_version = p_version AND current_account_id() IS NULL ORDER BY org_id;
END;
COMMENT ON FUNCTION orgs_with_secrets_under(integer) IS 'C11: where the sweep has work. It then works as hub_app, in one organisation at a time.';

CREATE FUNCTION orgs_with_clients() RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
BEGIN ATOMIC
    SELECT o.id FROM organizations o WHERE current_account_id() IS NULL AND EXISTS (SELECT FROM clients c WHERE c.org_id = o.id) ORDER BY o.id;
END;
COMMENT ON FUNCTION orgs_with_clients() IS 'C12: where the pass at the start has configurations to judge.';

CREATE FUNCTION count_secrets_under(p_version integer) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
BEGIN ATOMIC
    SELECT count(*) FROM client_secrets WHERE key_version = p_version AND acts_for_platform();
END;
COMMENT ON FUNCTION count_secrets_under(integer) IS 'C11: how many secrets, of all organisations, a key holds.';

CREATE FUNCTION remove_encryption_key(p_version integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT acts_for_platform() THEN
        PERFORM raise_rule('encryption_keys_for_admins', 'The keys of the platform are for its admins.', '42501');
    END IF;
    DELETE FROM encryption_keys WHERE version = p_version;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION remove_encryption_key(integer) IS 'C11: forgets a key that encrypts nothing any more.';


CREATE FUNCTION record_secret_reveal(p_client_id uuid, p_secret_id uuid, p_name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM append_audit(current_org_id(), 'secret.reveal', 'secret', p_secret_id, jsonb_build_object('client_id', p_client_id, 'name', p_name));
    RETURN true;
END $$;
COMMENT ON FUNCTION record_secret_reveal(uuid, uuid, text) IS 'C11, W12: puts on record that a secret is revealed, in the statement that reads it.';


-- What is on record (W12) ----------------------------------------------------------------------------------------

CREATE CONSTRAINT TRIGGER clients_audit AFTER INSERT OR UPDATE OR DELETE ON clients DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_audit('client', 'description', 'config');
CREATE CONSTRAINT TRIGGER client_secrets_audit AFTER INSERT OR UPDATE OR DELETE ON client_secrets DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_audit('secret');
COMMENT ON TRIGGER client_secrets_audit ON client_secrets IS 'W12: but not that a value is under another key now: the rotation is on record, and a million entries would say no more.';
CREATE CONSTRAINT TRIGGER encryption_keys_audit AFTER INSERT OR UPDATE OR DELETE ON encryption_keys DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_audit('encryption_key');
CREATE CONSTRAINT TRIGGER secret_rotations_audit AFTER INSERT OR UPDATE OR DELETE ON secret_rotations DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_audit('secret_rotation');


-- Who may see what (X01) -----------------------------------------------------------------------------------------

ALTER TABLE clients ENABLE ROW LEVEL SECURITY;
ALTER TABLE clients FORCE ROW LEVEL SECURITY;
ALTER TABLE client_secrets ENABLE ROW LEVEL SECURITY;
ALTER TABLE client_secrets FORCE ROW LEVEL SECURITY;
ALTER TABLE encryption_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE encryption_keys FORCE ROW LEVEL SECURITY;
ALTER TABLE secret_rotations ENABLE ROW LEVEL SECURITY;
ALTER TABLE secret_rotations FORCE ROW LEVEL SECURITY;

CREATE POLICY clients_tenant ON clients TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY client_secrets_tenant ON client_secrets TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY encryption_keys_visible ON encryption_keys FOR SELECT TO hub_app USING ((SELECT acts_for_platform()));
CREATE POLICY secret_rotations_visible ON secret_rotations FOR SELECT TO hub_app USING ((SELECT acts_for_platform()));
CREATE POLICY clients_counted ON clients FOR SELECT TO hub_system USING (true);
CREATE POLICY client_secrets_counted ON client_secrets FOR SELECT TO hub_system USING (true);
CREATE POLICY clients_purge ON clients FOR DELETE TO hub_system USING (is_deleted_organization(org_id));
CREATE POLICY client_secrets_purge ON client_secrets FOR DELETE TO hub_system USING (is_deleted_organization(org_id));
CREATE POLICY encryption_keys_control_plane ON encryption_keys TO hub_system USING (true);
CREATE POLICY secret_rotations_control_plane ON secret_rotations TO hub_system USING (true);

GRANT SELECT ON client_types, encryption_keys, secret_rotations TO hub_app;
-- Who inserts does not choose revision or updated_at (W22): the columns are listed.
GRANT SELECT, UPDATE, DELETE ON clients TO hub_app;
GRANT INSERT (org_id, id, type, schema_version, name, description, enabled, config, valid, validated_at, metadata) ON clients TO hub_app;
GRANT SELECT, DELETE ON client_secrets TO hub_app;
GRANT INSERT (org_id, id, client_id, name, key_version, ciphertext, metadata),
      UPDATE (key_version, ciphertext, value_changed_at, metadata) ON client_secrets TO hub_app;
GRANT SELECT, INSERT ON client_types TO hub_system;
GRANT SELECT (ctid, org_id), DELETE ON clients TO hub_system;
GRANT SELECT (ctid, org_id, key_version), DELETE ON client_secrets TO hub_system; -- and no ciphertext
GRANT SELECT, INSERT, DELETE ON encryption_keys TO hub_system;
GRANT SELECT, INSERT, UPDATE ON secret_rotations TO hub_system;

REVOKE ALL ON FUNCTION register_client_types(text[], integer[], jsonb[]), register_encryption_keys(integer[], bytea[]), start_secret_rotation(integer),
    advance_secret_rotation(uuid, bigint), complete_secret_rotation(uuid, bigint), orgs_with_secrets_under(integer), orgs_with_clients(),
    count_secrets_under(integer), remove_encryption_key(integer), record_secret_reveal(uuid, uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION register_client_types(text[], integer[], jsonb[]), register_encryption_keys(integer[], bytea[]), start_secret_rotation(integer),
    advance_secret_rotation(uuid, bigint), complete_secret_rotation(uuid, bigint), orgs_with_secrets_under(integer), orgs_with_clients(),
    count_secrets_under(integer), remove_encryption_key(integer), record_secret_reveal(uuid, uuid, text) TO hub_app;
GRANT CREATE ON SCHEMA public TO hub_system;
ALTER FUNCTION register_client_types(text[], integer[], jsonb[]) OWNER TO hub_system;
ALTER FUNCTION register_encryption_keys(integer[], bytea[]) OWNER TO hub_system;
ALTER FUNCTION start_secret_rotation(integer) OWNER TO hub_system;
ALTER FUNCTION advance_secret_rotation(uuid, bigint) OWNER TO hub_system;
ALTER FUNCTION complete_secret_rotation(uuid, bigint) OWNER TO hub_system;
ALTER FUNCTION orgs_with_secrets_under(integer) OWNER TO hub_system;
ALTER FUNCTION orgs_with_clients() OWNER TO hub_system;
ALTER FUNCTION count_secrets_under(integer) OWNER TO hub_system;
ALTER FUNCTION remove_encryption_key(integer) OWNER TO hub_system;
ALTER FUNCTION record_secret_reveal(uuid, uuid, text) OWNER TO hub_system;
REVOKE CREATE ON SCHEMA public FROM hub_system;
