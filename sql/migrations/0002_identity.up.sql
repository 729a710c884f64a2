-- Identity: accounts, organisations, their members and keys, as far as authentication needs them.
-- These tables are the control plane: they never refer to a tenant's tables.


-- Accounts -------------------------------------------------------------------------------------------------------

CREATE TABLE accounts (
    id           uuid        NOT NULL DEFAULT hub_uuidv7(),
    kind         text        NOT NULL,
    access_level text        NOT NULL DEFAULT 'member',
    status       text        NOT NULL DEFAULT 'active',
    display_name text        NOT NULL,
    email        text,
    data         jsonb       NOT NULL DEFAULT '{}',
    metadata     jsonb       NOT NULL DEFAULT '{}',
    revision     integer     NOT NULL DEFAULT 1,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT accounts_pkey PRIMARY KEY (id),
    CONSTRAINT accounts_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT accounts_kind_check CHECK (kind IN ('human', 'llm', 'service', 'system')),
    CONSTRAINT accounts_access_level_check CHECK (access_level IN ('admin', 'member')),
    CONSTRAINT accounts_status_check CHECK (status IN ('active', 'suspended', 'deactivated')),
    CONSTRAINT accounts_display_name_length_check CHECK (char_length(display_name) BETWEEN 1 AND 200),
    CONSTRAINT accounts_email_shape_check CHECK (email ~ '^[^@\s]+@[^@\s]+$' AND char_length(email) <= 254),
    CONSTRAINT accounts_data_object_check CHECK (jsonb_typeof(data) = 'object'),
    CONSTRAINT accounts_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE accounts IS 'Who can act: people, LLMs, services, and the one system account. An account belongs to no organisation; organization_members says where it works.';
COMMENT ON COLUMN accounts.kind IS 'human, llm, service, or system (the seeded account that acts where nobody is signed in).';
COMMENT ON COLUMN accounts.access_level IS 'W14: the platform-wide level. admin may use platform scopes; a role is something else (roles.name).';
COMMENT ON COLUMN accounts.status IS 'W02: active; suspended: keys stop and come back; deactivated: keys are revoked for good.';
COMMENT ON COLUMN accounts.data IS 'W01: structured profile data, typed in the contract.';
COMMENT ON COLUMN accounts.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN accounts.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT accounts_metadata_check ON accounts IS 'W01';
COMMENT ON CONSTRAINT accounts_id_version_check ON accounts IS 'C02';

CREATE UNIQUE INDEX accounts_email_key ON accounts (lower(email));
COMMENT ON INDEX accounts_email_key IS 'One account per address, whatever its case.';
CREATE UNIQUE INDEX accounts_system_key ON accounts (kind) WHERE kind = 'system';
COMMENT ON INDEX accounts_system_key IS 'C01: there is one system account.';

CREATE TRIGGER accounts_touch BEFORE UPDATE ON accounts
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER accounts_identity_immutable BEFORE UPDATE ON accounts
    FOR EACH ROW WHEN ((OLD.id, OLD.kind, OLD.created_at) IS DISTINCT FROM (NEW.id, NEW.kind, NEW.created_at))
    EXECUTE FUNCTION refuse_change('An account''s id, kind and creation time');

CREATE FUNCTION refuse_system_account_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM public.raise_rule(TG_NAME, 'The system account cannot be changed or deleted.', '42501');
END $$;
COMMENT ON FUNCTION refuse_system_account_change() IS 'C01: the system account is an actor of last resort and must always be there.';
CREATE TRIGGER accounts_system_fixed BEFORE UPDATE OR DELETE ON accounts
    FOR EACH ROW WHEN (OLD.kind = 'system') EXECUTE FUNCTION refuse_system_account_change();
COMMENT ON TRIGGER accounts_system_fixed ON accounts IS 'C01: seeded and undeletable.';

INSERT INTO accounts (id, kind, access_level, display_name)
VALUES ('00000000-0000-7000-8000-000000000001', 'system', 'admin', 'system');


-- Organisations and members --------------------------------------------------------------------------------------

CREATE TABLE organizations (
    id          uuid        NOT NULL DEFAULT hub_uuidv7(),
    slug        text        NOT NULL,
    name        text        NOT NULL,
    owner_id    uuid        NOT NULL,
    owner_level text        NOT NULL GENERATED ALWAYS AS ('owner') STORED,
    deleted_at  timestamptz,
    data        jsonb       NOT NULL DEFAULT '{}',
    metadata    jsonb       NOT NULL DEFAULT '{}',
    revision    integer     NOT NULL DEFAULT 1,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT organizations_pkey PRIMARY KEY (id),
    CONSTRAINT organizations_slug_key UNIQUE (slug),
    CONSTRAINT organizations_owner_id_fkey FOREIGN KEY (owner_id) REFERENCES accounts (id) ON DELETE RESTRICT,
    CONSTRAINT organizations_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT organizations_slug_shape_check CHECK (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND char_length(slug) <= 100),
    CONSTRAINT organizations_name_length_check CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT organizations_data_object_check CHECK (jsonb_typeof(data) = 'object'),
    CONSTRAINT organizations_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE organizations IS 'The tenants. Everything below an organisation carries its id and is invisible to every other one (X01).';
COMMENT ON COLUMN organizations.owner_id IS 'C13: the accountable owner, always a member at level owner.';
COMMENT ON COLUMN organizations.owner_level IS 'C13: a constant, so that a foreign key can require it.';
COMMENT ON COLUMN organizations.deleted_at IS 'W12: set when deletion was asked for: its keys fail at once, a worker purges the rest in batches.';
COMMENT ON COLUMN organizations.data IS 'W01: structured settings, typed in the contract.';
COMMENT ON COLUMN organizations.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN organizations.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT organizations_owner_id_fkey ON organizations IS 'W16: an owner''s account cannot be deleted before the ownership is transferred.';
COMMENT ON CONSTRAINT organizations_id_version_check ON organizations IS 'C02';
COMMENT ON CONSTRAINT organizations_metadata_check ON organizations IS 'W01';

CREATE TABLE organization_members (
    org_id           uuid        NOT NULL,
    account_id       uuid        NOT NULL,
    membership_level text        NOT NULL DEFAULT 'member',
    metadata         jsonb       NOT NULL DEFAULT '{}',
    revision         integer     NOT NULL DEFAULT 1,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT organization_members_pkey PRIMARY KEY (org_id, account_id),
    CONSTRAINT organization_members_level_key UNIQUE (org_id, account_id, membership_level),
    CONSTRAINT organization_members_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations (id) ON DELETE CASCADE,
    CONSTRAINT organization_members_account_id_fkey FOREIGN KEY (account_id) REFERENCES accounts (id) ON DELETE CASCADE,
    CONSTRAINT organization_members_level_check CHECK (membership_level IN ('owner', 'admin', 'member')),
    CONSTRAINT organization_members_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE organization_members IS 'Which account works in which organisation, and at which level.';
COMMENT ON COLUMN organization_members.membership_level IS 'W14: owner, admin or member. There may be several owners; organizations.owner_id names the accountable one.';
COMMENT ON COLUMN organization_members.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN organization_members.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT organization_members_level_key ON organization_members IS 'C13: what the accountable owner''s foreign key refers to.';
COMMENT ON CONSTRAINT organization_members_metadata_check ON organization_members IS 'W01';

ALTER TABLE organizations ADD CONSTRAINT organizations_owner_is_member_fkey
    FOREIGN KEY (id, owner_id, owner_level) REFERENCES organization_members (org_id, account_id, membership_level)
    ON DELETE NO ACTION ON UPDATE NO ACTION DEFERRABLE INITIALLY IMMEDIATE;
COMMENT ON CONSTRAINT organizations_owner_is_member_fkey ON organizations IS
    'C13: the accountable owner is a member at level owner. Demoting or removing them needs a transfer first. NO ACTION, so that deleting the whole organisation can pass.';

CREATE INDEX organizations_owner_id_idx ON organizations (owner_id);
CREATE INDEX organizations_owner_is_member_idx ON organizations (id, owner_id, owner_level);
CREATE INDEX organization_members_account_id_idx ON organization_members (account_id);

CREATE TRIGGER organizations_touch BEFORE UPDATE ON organizations
    FOR EACH ROW WHEN ((OLD.slug, OLD.name, OLD.owner_id, OLD.deleted_at, OLD.data::text, OLD.metadata::text, OLD.revision, OLD.updated_at)
        IS DISTINCT FROM (NEW.slug, NEW.name, NEW.owner_id, NEW.deleted_at, NEW.data::text, NEW.metadata::text, NEW.revision, NEW.updated_at))
    EXECUTE FUNCTION touch_row();
CREATE TRIGGER organizations_identity_immutable BEFORE UPDATE ON organizations
    FOR EACH ROW WHEN ((OLD.id, OLD.created_at) IS DISTINCT FROM (NEW.id, NEW.created_at))
    EXECUTE FUNCTION refuse_change('An organisation''s id and creation time');
CREATE TRIGGER organization_members_touch BEFORE UPDATE ON organization_members
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER organization_members_identity_immutable BEFORE UPDATE ON organization_members
    FOR EACH ROW WHEN ((OLD.org_id, OLD.account_id, OLD.created_at) IS DISTINCT FROM (NEW.org_id, NEW.account_id, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A membership''s organisation, account and creation time');


-- API keys -------------------------------------------------------------------------------------------------------

CREATE TABLE api_keys (
    org_id     uuid        NOT NULL,
    id         uuid        NOT NULL DEFAULT hub_uuidv7(),
    account_id uuid        NOT NULL,
    name       text        NOT NULL,
    key_hash   bytea       NOT NULL,
    scopes     text[]      NOT NULL DEFAULT '{}',
    enabled    boolean     NOT NULL DEFAULT true,
    expires_at timestamptz,
    revoked_at timestamptz,
    metadata   jsonb       NOT NULL DEFAULT '{}',
    revision   integer     NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT api_keys_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash),
    CONSTRAINT api_keys_member_fkey FOREIGN KEY (org_id, account_id)
        REFERENCES organization_members (org_id, account_id) ON DELETE CASCADE,
    CONSTRAINT api_keys_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT api_keys_name_length_check CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT api_keys_key_hash_length_check CHECK (octet_length(key_hash) = 32),
    CONSTRAINT api_keys_scopes_known_shape_check CHECK (array_position(scopes, NULL) IS NULL AND cardinality(string_to_array(array_to_string(scopes, ' '), ' ')) = cardinality(scopes)
        AND array_to_string(scopes, ' ') ~ '^((\*|platform:\*|(?!platform:)[a-z]+:(read|write|admin))( (?!$)|$))*$'),
    CONSTRAINT api_keys_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE api_keys IS 'A key belongs to one account and one organisation, and says what its holder may do there.';
COMMENT ON COLUMN api_keys.key_hash IS 'W13: SHA-256 of the key. Keys are 256 random bits, so a slow hash would add latency and no safety.';
COMMENT ON COLUMN api_keys.scopes IS 'noun:read, noun:write, noun:admin; * for all of those; platform:* for admin accounts.';
COMMENT ON COLUMN api_keys.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN api_keys.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT api_keys_key_hash_key ON api_keys IS 'Found before the organisation is known: the one UNIQUE of a tenant table that cannot start with org_id. Also the index that authentication uses (W03).';
COMMENT ON CONSTRAINT api_keys_key_hash_length_check ON api_keys IS 'W13';
COMMENT ON CONSTRAINT api_keys_member_fkey ON api_keys IS 'A key dies with its holder''s membership.';
COMMENT ON CONSTRAINT api_keys_id_version_check ON api_keys IS 'C02';
COMMENT ON CONSTRAINT api_keys_metadata_check ON api_keys IS 'W01';

CREATE INDEX api_keys_account_id_idx ON api_keys (org_id, account_id);

CREATE TRIGGER api_keys_touch BEFORE UPDATE ON api_keys
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER api_keys_identity_immutable BEFORE UPDATE ON api_keys
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.account_id, OLD.key_hash, OLD.created_at)
        IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.account_id, NEW.key_hash, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A key''s organisation, id, account, hash and creation time');


-- Who may see what (X01) -----------------------------------------------------------------------------------------

ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE accounts FORCE ROW LEVEL SECURITY;
ALTER TABLE organizations ENABLE ROW LEVEL SECURITY;
ALTER TABLE organizations FORCE ROW LEVEL SECURITY;
ALTER TABLE organization_members ENABLE ROW LEVEL SECURITY;
ALTER TABLE organization_members FORCE ROW LEVEL SECURITY;
ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE api_keys FORCE ROW LEVEL SECURITY;

CREATE POLICY accounts_visible ON accounts FOR SELECT TO hub_app USING (
    id = (SELECT current_account_id())
    OR EXISTS (SELECT FROM organization_members m WHERE m.org_id = (SELECT current_org_id()) AND m.account_id = accounts.id));
CREATE POLICY organizations_tenant ON organizations FOR SELECT TO hub_app USING (id = (SELECT current_org_id()));
CREATE POLICY organization_members_tenant ON organization_members FOR SELECT TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY api_keys_tenant ON api_keys FOR SELECT TO hub_app USING (org_id = (SELECT current_org_id()));

CREATE POLICY accounts_authentication ON accounts FOR SELECT TO hub_auth USING (true);
CREATE POLICY organizations_authentication ON organizations FOR SELECT TO hub_auth USING (true);
CREATE POLICY api_keys_authentication ON api_keys FOR SELECT TO hub_auth USING (true);

CREATE POLICY accounts_control_plane ON accounts TO hub_system USING (true);
CREATE POLICY organizations_control_plane ON organizations TO hub_system USING (true);
CREATE POLICY organization_members_control_plane ON organization_members TO hub_system USING (true);
CREATE POLICY api_keys_control_plane ON api_keys TO hub_system USING (true);

GRANT SELECT ON accounts, organizations, organization_members TO hub_app;
GRANT SELECT (org_id, id, account_id, name, scopes, enabled, expires_at, revoked_at, metadata, revision, created_at, updated_at) ON api_keys TO hub_app;
GRANT SELECT ON accounts, organizations, api_keys TO hub_auth;
GRANT SELECT, INSERT, UPDATE, DELETE ON accounts, organizations, organization_members, api_keys TO hub_system;


-- Authentication -------------------------------------------------------------------------------------------------

CREATE FUNCTION authenticate(p_key_hash bytea, p_scopes text[],
    OUT org_id uuid, OUT account_id uuid, OUT key_id uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_scopes  text[];
    v_level   text;
    v_missing text[];
BEGIN
    SELECT k.org_id, k.account_id, k.id, k.scopes, a.access_level INTO org_id, account_id, key_id, v_scopes, v_level
    FROM api_keys k
    JOIN accounts a ON a.id = k.account_id
    JOIN organizations o ON o.id = k.org_id
    WHERE k.key_hash = p_key_hash
      AND k.enabled
      AND k.revoked_at IS NULL
      AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
      AND a.status = 'active'
      AND o.deleted_at IS NULL;
    IF NOT FOUND THEN
        PERFORM raise_rule('unauthenticated', 'The key is not valid.', '28000');
    END IF;

    -- '*' covers every scope of the organisation, and none of the platform's: those take platform:* and an admin's account.
    IF v_level <> 'admin' THEN
        v_scopes := array_remove(v_scopes, 'platform:*');
    END IF;
    IF NOT p_scopes <@ v_scopes THEN
        v_missing := ARRAY(
            SELECT s FROM unnest(p_scopes) s
            WHERE NOT (s = ANY (v_scopes) OR CASE WHEN starts_with(s, 'platform:') THEN 'platform:*' ELSE '*' END = ANY (v_scopes)));
    END IF;
    IF v_missing <> '{}' THEN
        PERFORM raise_rule('insufficient_scope', format('The key lacks the scope %s.', array_to_string(v_missing, ', ')), '42501');
    END IF;

    PERFORM set_config('hub.org_id', org_id::text, true),
            set_config('hub.account_id', account_id::text, true),
            set_config('hub.key_id', key_id::text, true);
END $$;
COMMENT ON FUNCTION authenticate(bytea, text[]) IS
    'Finds the key, checks that it, its account and its organisation are in force and that it covers the scopes, and sets the tenant for this transaction. It rides in front of each request''s first statement, so a revoked key fails on the next request, on every replica. S05: every way to fail is the same 28000 unauthenticated.';


-- First start ----------------------------------------------------------------------------------------------------

CREATE FUNCTION bootstrap_hub(p_org_slug text, p_org_name text, p_admin_name text, p_key_hash bytea, OUT org_id uuid, OUT account_id uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('bootstrap_hub', 0)); -- several replicas may start at once
    IF EXISTS (SELECT FROM organizations) THEN
        RETURN;
    END IF;
    org_id := hub_uuidv7();
    INSERT INTO accounts (kind, access_level, display_name) VALUES ('human', 'admin', p_admin_name)
    RETURNING id INTO account_id;
    SET CONSTRAINTS organizations_owner_is_member_fkey DEFERRED;
    INSERT INTO organizations (id, slug, name, owner_id) VALUES (org_id, p_org_slug, p_org_name, account_id);
    INSERT INTO organization_members (org_id, account_id, membership_level) VALUES (org_id, account_id, 'owner');
    SET CONSTRAINTS organizations_owner_is_member_fkey IMMEDIATE;
    INSERT INTO api_keys (org_id, account_id, name, key_hash, scopes)
    VALUES (org_id, account_id, 'first admin key', p_key_hash, '{*,platform:*}');
END $$;
COMMENT ON FUNCTION bootstrap_hub(text, text, text, bytea) IS
    'The first organisation, its admin and the admin''s key: once, on the first start. Returns NULLs where there is an organisation already.';

CREATE FUNCTION hub_is_bootstrapped() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
RETURN EXISTS (SELECT FROM organizations);
COMMENT ON FUNCTION hub_is_bootstrapped() IS 'Whether there is an organisation, whoever asks.';

REVOKE ALL ON FUNCTION authenticate(bytea, text[]), bootstrap_hub(text, text, text, bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION authenticate(bytea, text[]) TO hub_app;

-- A function's new owner needs CREATE on the schema, for this moment only.
GRANT CREATE ON SCHEMA public TO hub_auth, hub_system;
ALTER FUNCTION authenticate(bytea, text[]) OWNER TO hub_auth;
ALTER FUNCTION bootstrap_hub(text, text, text, bytea) OWNER TO hub_system;
ALTER FUNCTION hub_is_bootstrapped() OWNER TO hub_system;
REVOKE CREATE ON SCHEMA public FROM hub_auth, hub_system;
GRANT EXECUTE ON FUNCTION bootstrap_hub(text, text, text, bytea) TO CURRENT_USER;
