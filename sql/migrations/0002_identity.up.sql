-- Identity: accounts, organisations, their members and keys; who may see and change them; authentication.
-- These tables are the control plane: they never refer to a tenant's tables.


-- Accounts -------------------------------------------------------------------------------------------------------

CREATE TABLE reserved_email_domains (
    domain     text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT reserved_email_domains_pkey PRIMARY KEY (domain),
    CONSTRAINT reserved_email_domains_shape_check CHECK (domain ~ '^[a-z0-9-]+([.][a-z0-9-]+)*$' AND char_length(domain) <= 253)
);
COMMENT ON TABLE reserved_email_domains IS 'S03: addresses at these domains, and below them, belong to llm and service accounts, and those have no others. The operator adds to it.';
INSERT INTO reserved_email_domains (domain) VALUES ('alk.dev');

CREATE TABLE account_status_transitions (
    from_status text        NOT NULL,
    to_status   text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT account_status_transitions_pkey PRIMARY KEY (from_status, to_status)
);
COMMENT ON TABLE account_status_transitions IS 'X06: which status an account can go to from which.';
INSERT INTO account_status_transitions (from_status, to_status) VALUES
    ('active', 'suspended'), ('active', 'deactivated'), ('suspended', 'active'), ('suspended', 'deactivated'),
    ('deactivated', 'active'); -- a person comes back, the keys do not

CREATE TABLE accounts (
    id           uuid        NOT NULL DEFAULT hub_uuidv7(),
    kind         text        NOT NULL,
    access_level text        NOT NULL DEFAULT 'member',
    status       text        NOT NULL DEFAULT 'active',
    home_org_id  uuid,
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
COMMENT ON COLUMN accounts.home_org_id IS 'The organisation that made the account, and whose admins may change its profile; NULL for the platform''s own. It may work elsewhere as well.';
COMMENT ON COLUMN accounts.data IS 'W01: structured profile data, typed in the contract.';
COMMENT ON COLUMN accounts.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN accounts.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT accounts_metadata_check ON accounts IS 'W01';
COMMENT ON CONSTRAINT accounts_id_version_check ON accounts IS 'C02';

CREATE UNIQUE INDEX accounts_email_key ON accounts (lower(email));
COMMENT ON INDEX accounts_email_key IS 'One account per address, whatever its case.';
CREATE INDEX accounts_home_org_id_idx ON accounts (home_org_id);
CREATE INDEX accounts_display_name_idx ON accounts USING gin (display_name extensions.gin_trgm_ops);
COMMENT ON INDEX accounts_display_name_idx IS 'S04: trigrams, for search_accounts.';
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

CREATE FUNCTION check_account_access_level() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.access_level <> (CASE TG_OP WHEN 'INSERT' THEN 'member' ELSE OLD.access_level END)
       AND public.current_account_id() IS NOT NULL AND NOT public.is_platform_admin() THEN
        PERFORM public.raise_rule(TG_NAME, 'Only a platform admin gives or takes an access level.', '42501');
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_account_access_level() IS 'S01: access levels change only by a platform admin.';
CREATE TRIGGER accounts_access_level_by_platform_admin BEFORE INSERT OR UPDATE ON accounts
    FOR EACH ROW EXECUTE FUNCTION check_account_access_level();
COMMENT ON TRIGGER accounts_access_level_by_platform_admin ON accounts IS 'S01';

CREATE TRIGGER accounts_status_by_platform_admin BEFORE UPDATE ON accounts
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status)
    EXECUTE FUNCTION require_platform_admin('Only a platform admin changes an account''s status.');
COMMENT ON TRIGGER accounts_status_by_platform_admin ON accounts IS 'X01';
CREATE TRIGGER accounts_deleted_by_platform_admin BEFORE DELETE ON accounts
    FOR EACH ROW EXECUTE FUNCTION require_platform_admin('Only a platform admin deletes an account.');
COMMENT ON TRIGGER accounts_deleted_by_platform_admin ON accounts IS 'X01';

CREATE FUNCTION refuse_own_account_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id = public.current_account_id() THEN
        PERFORM public.raise_rule(TG_NAME, 'Nobody changes their own access level or status.', '42501');
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION refuse_own_account_change() IS 'S01: one''s own level is somebody else''s to change; and nobody locks themselves out.';
CREATE TRIGGER accounts_level_and_status_not_own BEFORE UPDATE ON accounts
    FOR EACH ROW WHEN ((OLD.access_level, OLD.status) IS DISTINCT FROM (NEW.access_level, NEW.status))
    EXECUTE FUNCTION refuse_own_account_change();
COMMENT ON TRIGGER accounts_level_and_status_not_own ON accounts IS 'S01';

CREATE FUNCTION check_account_profile() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF public.current_account_id() IS NOT NULL AND NOT public.is_platform_admin()
       AND NOT (NEW.home_org_id IS NOT DISTINCT FROM public.current_org_id()
                AND (public.current_membership_rank() >= 2 OR NEW.id = public.current_account_id())) THEN
        PERFORM public.raise_rule(TG_NAME, 'A profile is changed with a key of its home organisation, by its account or an admin there, or by a platform admin.', '42501');
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_account_profile() IS 'X01: an organisation that an account merely works in does not rewrite it for all others, not even with a key that it made for the account.';
CREATE TRIGGER accounts_profile_by_its_managers BEFORE UPDATE ON accounts
    FOR EACH ROW WHEN ((OLD.display_name, OLD.email, OLD.data, OLD.metadata) IS DISTINCT FROM (NEW.display_name, NEW.email, NEW.data, NEW.metadata))
    EXECUTE FUNCTION check_account_profile();

CREATE FUNCTION check_account_status() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM account_status_transitions t WHERE (t.from_status, t.to_status) = (OLD.status, NEW.status)) THEN
        PERFORM raise_rule(TG_NAME, format('An account that is %s cannot become %s.', OLD.status, NEW.status));
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_account_status() IS 'X06: the steps are rows of account_status_transitions.';
CREATE TRIGGER accounts_status_transition BEFORE UPDATE ON accounts
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status AND NEW.status IN ('active', 'suspended', 'deactivated'))
    EXECUTE FUNCTION check_account_status();
COMMENT ON TRIGGER accounts_status_transition ON accounts IS 'X06';

CREATE FUNCTION check_account_email_domain() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_host text := rtrim(lower(split_part(NEW.email, '@', 2)), '.');
BEGIN
    IF EXISTS (SELECT FROM reserved_email_domains d WHERE v_host = d.domain OR right(v_host, length(d.domain) + 1) = '.' || d.domain)
       <> (NEW.kind IN ('llm', 'service')) THEN
        PERFORM raise_rule(TG_NAME, CASE WHEN NEW.kind IN ('llm', 'service')
            THEN 'The address of an llm or service account is at a reserved domain.'
            ELSE 'This domain is reserved for llm and service accounts.' END);
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_account_email_domain() IS 'S03: an address tells a person from a machine.';
CREATE TRIGGER accounts_email_domain BEFORE INSERT OR UPDATE OF email ON accounts
    FOR EACH ROW WHEN (NEW.email ~ '^[^@\s]+@[^@\s]+$') EXECUTE FUNCTION check_account_email_domain();
COMMENT ON TRIGGER accounts_email_domain ON accounts IS 'S03';

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
    CONSTRAINT organization_members_not_system_check CHECK (account_id <> '00000000-0000-7000-8000-000000000001'),
    CONSTRAINT organization_members_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE organization_members IS 'Which account works in which organisation, and at which level.';
COMMENT ON COLUMN organization_members.membership_level IS 'W14: owner, admin or member. There may be several owners; organizations.owner_id names the accountable one.';
COMMENT ON COLUMN organization_members.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN organization_members.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT organization_members_level_key ON organization_members IS 'C13: what the accountable owner''s foreign key refers to.';
COMMENT ON CONSTRAINT organization_members_not_system_check ON organization_members IS 'C01: nobody signs in as the system account.';
COMMENT ON CONSTRAINT organization_members_metadata_check ON organization_members IS 'W01';

ALTER TABLE accounts ADD CONSTRAINT accounts_home_org_id_fkey FOREIGN KEY (home_org_id) REFERENCES organizations (id) ON DELETE SET NULL;
CREATE TRIGGER accounts_home_org_immutable BEFORE UPDATE ON accounts
    FOR EACH ROW WHEN (NEW.home_org_id IS NOT NULL AND OLD.home_org_id IS DISTINCT FROM NEW.home_org_id)
    EXECUTE FUNCTION refuse_change('An account''s home organisation');

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

CREATE FUNCTION check_organization_transfer() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF public.current_account_id() <> OLD.owner_id AND NOT public.is_platform_admin() THEN
        PERFORM public.raise_rule(TG_NAME, 'An organisation is handed over by its accountable owner, or by a platform admin.', '42501');
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_organization_transfer() IS 'W16: by the owner or a platform admin.';
CREATE TRIGGER organizations_transferred_by_owner BEFORE UPDATE ON organizations
    FOR EACH ROW WHEN (OLD.owner_id IS DISTINCT FROM NEW.owner_id) EXECUTE FUNCTION check_organization_transfer();
COMMENT ON TRIGGER organizations_transferred_by_owner ON organizations IS 'W16';

CREATE FUNCTION check_member_change() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    v_level text := CASE WHEN TG_OP = 'DELETE' THEN OLD.membership_level ELSE NEW.membership_level END;
BEGIN
    -- What a platform admin's function does in another organisation is judged there; hub_app itself reaches no other one.
    IF public.current_account_id() IS NULL OR public.is_platform_admin() OR coalesce(NEW.org_id, OLD.org_id) <> public.current_org_id()
       OR TG_OP = 'DELETE' AND OLD.account_id = public.current_account_id() THEN -- everybody may leave
        RETURN coalesce(NEW, OLD);
    END IF;
    IF public.current_membership_rank() < 2
       OR public.membership_rank(v_level) > public.current_membership_rank()
       OR TG_OP = 'UPDATE' AND public.membership_rank(OLD.membership_level) > public.current_membership_rank() THEN
        PERFORM public.raise_rule(TG_NAME, 'Members are added, changed and removed by admins, and owners by owners.', '42501');
    END IF;
    RETURN coalesce(NEW, OLD);
END $$;
COMMENT ON FUNCTION check_member_change() IS 'Nobody gives or takes a membership level above their own; everybody may leave.';
CREATE TRIGGER organization_members_level_granted BEFORE INSERT OR UPDATE OR DELETE ON organization_members
    FOR EACH ROW EXECUTE FUNCTION check_member_change();


-- API keys -------------------------------------------------------------------------------------------------------

CREATE TABLE api_keys (
    org_id     uuid        NOT NULL,
    id         uuid        NOT NULL DEFAULT hub_uuidv7(),
    account_id uuid        NOT NULL,
    name       text        NOT NULL,
    key_hash   bytea       NOT NULL,
    scopes     text[]      NOT NULL DEFAULT '{}',
    resources  text[]      NOT NULL DEFAULT '{}',
    tags       text[]      NOT NULL DEFAULT '{}',
    enabled    boolean     NOT NULL DEFAULT true,
    expires_at timestamptz,
    revoked_at timestamptz,
    rotated_to_id uuid,
    last_used_at timestamptz,
    metadata   jsonb       NOT NULL DEFAULT '{}',
    revision   integer     NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT api_keys_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash),
    CONSTRAINT api_keys_member_fkey FOREIGN KEY (org_id, account_id)
        REFERENCES organization_members (org_id, account_id) ON DELETE CASCADE,
    CONSTRAINT api_keys_rotated_to_id_fkey FOREIGN KEY (org_id, rotated_to_id)
        REFERENCES api_keys (org_id, id) ON DELETE SET NULL (rotated_to_id),
    CONSTRAINT api_keys_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT api_keys_name_length_check CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT api_keys_key_hash_length_check CHECK (octet_length(key_hash) = 32),
    CONSTRAINT api_keys_scopes_known_shape_check CHECK (array_position(scopes, NULL) IS NULL AND cardinality(string_to_array(array_to_string(scopes, ' '), ' ')) = cardinality(scopes)
        AND array_to_string(scopes, ' ') ~ '^((\*|platform:\*|(?!platform:)[a-z]+:(read|write|admin))( (?!$)|$))*$'),
    CONSTRAINT api_keys_resources_shape_check CHECK (cardinality(resources) <= 100 AND array_position(resources, NULL) IS NULL
        AND cardinality(string_to_array(array_to_string(resources, ' '), ' ')) = cardinality(resources)
        AND array_to_string(resources, ' ') ~ '^(project:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}( (?!$)|$))*$'),
    CONSTRAINT api_keys_tags_shape_check CHECK (cardinality(tags) <= 50 AND array_position(tags, NULL) IS NULL
        AND cardinality(string_to_array(array_to_string(tags, ' '), ' ')) = cardinality(tags)
        AND array_to_string(tags, ' ') ~ '^([a-z0-9][a-z0-9._:/-]{0,49}( (?!$)|$))*$'),
    CONSTRAINT api_keys_expires_after_creation_check CHECK (expires_at > created_at),
    CONSTRAINT api_keys_expires_in_reach_check CHECK (expires_at < '9999-12-31T00:00:00Z'),
    CONSTRAINT api_keys_rotated_to_another_check CHECK (rotated_to_id <> id),
    CONSTRAINT api_keys_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE api_keys IS 'A key belongs to one account and one organisation, and says what its holder may do there.';
COMMENT ON COLUMN api_keys.key_hash IS 'W13: SHA-256 of the key. Keys are 256 random bits, so a slow hash would add latency and no safety.';
COMMENT ON COLUMN api_keys.scopes IS 'noun:read, noun:write, noun:admin; * for all of those; platform:* for admin accounts.';
COMMENT ON COLUMN api_keys.resources IS 'W01: what the key is limited to, as project:<id>; empty for the whole organisation. The <table>_limited policies enforce it.';
COMMENT ON COLUMN api_keys.tags IS 'W01: labels of the organisation''s own.';
COMMENT ON COLUMN api_keys.rotated_to_id IS 'The key that takes this one''s place; this one lives on for a grace period.';
COMMENT ON COLUMN api_keys.last_used_at IS 'Coarse: written in batches, at most once a minute per key; neither a revision nor audited.';
COMMENT ON COLUMN api_keys.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN api_keys.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT api_keys_key_hash_key ON api_keys IS 'Found before the organisation is known: the one UNIQUE of a tenant table that cannot start with org_id. Also the index that authentication uses (W03).';
COMMENT ON CONSTRAINT api_keys_key_hash_length_check ON api_keys IS 'W13';
COMMENT ON CONSTRAINT api_keys_member_fkey ON api_keys IS 'A key dies with its holder''s membership.';
COMMENT ON CONSTRAINT api_keys_id_version_check ON api_keys IS 'C02';
COMMENT ON CONSTRAINT api_keys_metadata_check ON api_keys IS 'W01';

CREATE INDEX api_keys_account_id_idx ON api_keys (org_id, account_id);

CREATE INDEX api_keys_rotated_to_id_idx ON api_keys (org_id, rotated_to_id);

CREATE TRIGGER api_keys_touch BEFORE UPDATE ON api_keys
    FOR EACH ROW WHEN ((OLD.name, OLD.scopes, OLD.resources, OLD.tags, OLD.enabled, OLD.expires_at, OLD.revoked_at, OLD.rotated_to_id, OLD.metadata::text, OLD.revision)
        IS DISTINCT FROM (NEW.name, NEW.scopes, NEW.resources, NEW.tags, NEW.enabled, NEW.expires_at, NEW.revoked_at, NEW.rotated_to_id, NEW.metadata::text, NEW.revision))
    EXECUTE FUNCTION touch_row();
CREATE TRIGGER api_keys_use BEFORE UPDATE ON api_keys
    FOR EACH ROW WHEN ((OLD.last_used_at, OLD.updated_at) IS DISTINCT FROM (NEW.last_used_at, NEW.updated_at)) EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER api_keys_identity_immutable BEFORE UPDATE ON api_keys
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.account_id, OLD.key_hash, OLD.created_at)
        IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.account_id, NEW.key_hash, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A key''s organisation, id, account, hash and creation time');
CREATE TRIGGER api_keys_revoked_for_good BEFORE UPDATE ON api_keys
    FOR EACH ROW WHEN (OLD.revoked_at IS NOT NULL AND
        ((OLD.name, OLD.scopes, OLD.resources, OLD.tags, OLD.enabled, OLD.expires_at, OLD.revoked_at, OLD.metadata)
            IS DISTINCT FROM (NEW.name, NEW.scopes, NEW.resources, NEW.tags, NEW.enabled, NEW.expires_at, NEW.revoked_at, NEW.metadata)
         OR OLD.rotated_to_id IS NULL AND NEW.rotated_to_id IS NOT NULL))
    EXECUTE FUNCTION refuse_change('A revoked key');
COMMENT ON TRIGGER api_keys_revoked_for_good ON api_keys IS 'W02';
CREATE FUNCTION refuse_other_key_successor() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- ON DELETE SET NULL comes after the successor is gone: nobody else can bring that about.
    IF NEW.rotated_to_id IS NULL AND NOT EXISTS (SELECT FROM api_keys k WHERE k.org_id = OLD.org_id AND k.id = OLD.rotated_to_id) THEN
        RETURN NEW;
    END IF;
    PERFORM raise_rule(TG_NAME, 'A key is rotated once.');
END $$;
COMMENT ON FUNCTION refuse_other_key_successor() IS 'A rotated key keeps its successor for as long as there is one.';
CREATE TRIGGER api_keys_rotated_once BEFORE UPDATE ON api_keys
    FOR EACH ROW WHEN (OLD.rotated_to_id IS NOT NULL AND OLD.rotated_to_id IS DISTINCT FROM NEW.rotated_to_id)
    EXECUTE FUNCTION refuse_other_key_successor();
CREATE TRIGGER api_keys_grace_only_shrinks BEFORE UPDATE ON api_keys
    FOR EACH ROW WHEN (NEW.rotated_to_id IS NOT NULL AND coalesce(NEW.expires_at, 'infinity') > coalesce(OLD.expires_at, 'infinity'))
    EXECUTE FUNCTION refuse_change('The end of a rotated key, but for an earlier one,');

CREATE FUNCTION check_key_grant() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_held   text[] := current_key_scopes();
    v_holder organization_members;
    v_added  text[] := NEW.scopes;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        v_added := ARRAY(SELECT unnest(NEW.scopes) EXCEPT SELECT unnest(OLD.scopes));
    END IF;
    IF 'platform:*' = ANY (v_added) AND NOT EXISTS (SELECT FROM accounts a WHERE a.id = NEW.account_id AND a.access_level = 'admin') THEN
        PERFORM raise_rule('api_keys_platform_scope_for_admins', 'platform:* is for keys of admin accounts.');
    END IF;
    IF TG_OP = 'INSERT' THEN -- the lock makes a deactivation wait, which then revokes this key too
        PERFORM FROM accounts a WHERE a.id = NEW.account_id FOR SHARE;
        PERFORM FROM accounts a WHERE a.id = NEW.account_id AND a.status = 'deactivated';
        IF FOUND AND current_account_id() IS NOT NULL THEN
            PERFORM raise_rule('account_is_deactivated', 'The account is deactivated.');
        END IF;
    END IF;
    -- What a platform admin's function does in another organisation is judged there; hub_app itself reaches no other one.
    IF current_account_id() IS NULL OR NEW.org_id <> current_org_id() THEN
        RETURN NEW;
    END IF;
    SELECT * INTO v_holder FROM organization_members m WHERE (m.org_id, m.account_id) = (NEW.org_id, NEW.account_id);
    IF FOUND AND NEW.account_id <> current_account_id() AND NOT is_platform_admin()
       AND (current_membership_rank() < 2 OR membership_rank(v_holder.membership_level) > current_membership_rank()) THEN
        PERFORM raise_rule('api_keys_holder_within_level', 'Keys of others are made and changed by admins, and owners'' keys by owners.', '42501');
    END IF;
    IF TG_OP = 'INSERT' AND NEW.account_id <> current_account_id() AND NOT is_platform_admin()
       AND EXISTS (SELECT FROM organizations o WHERE (o.id, o.owner_id) = (NEW.org_id, NEW.account_id)) THEN -- it could hand over the organisation (W16)
        PERFORM raise_rule('api_keys_holder_within_level', 'Keys of the accountable owner are theirs to make.', '42501');
    END IF;
    IF EXISTS (SELECT FROM unnest(v_added) s WHERE NOT (s = ANY (v_held) OR NOT starts_with(s, 'platform:') AND '*' = ANY (v_held))) THEN
        PERFORM raise_rule('api_keys_scopes_granted', 'A key grants no scope that the key that makes it lacks.', '42501');
    END IF;
    IF current_project_ids() IS NOT NULL AND (
           NEW.resources = '{}' OR NOT NEW.resources <@ ARRAY(SELECT 'project:' || p FROM unnest(current_project_ids()) p)
           OR TG_OP = 'UPDATE' AND (OLD.resources = '{}' OR NOT OLD.resources <@ ARRAY(SELECT 'project:' || p FROM unnest(current_project_ids()) p))) THEN
        PERFORM raise_rule('api_keys_resources_granted', 'A limited key makes and changes only keys that are limited as much.', '42501');
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_key_grant() IS 'A key cannot grant what its creator lacks: scopes, resources, or the level of its holder.';
CREATE TRIGGER api_keys_granted BEFORE INSERT OR UPDATE OF name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, metadata ON api_keys
    FOR EACH ROW EXECUTE FUNCTION check_key_grant();

CREATE FUNCTION revoke_account_keys() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    UPDATE api_keys k SET revoked_at = now()
    FROM organization_members m
    WHERE m.account_id = NEW.id AND (k.org_id, k.account_id) = (m.org_id, m.account_id) AND k.revoked_at IS NULL;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION revoke_account_keys() IS 'W02: whoever deactivates an account revokes its keys, in all organisations, for good.';
CREATE TRIGGER accounts_deactivation AFTER UPDATE ON accounts
    FOR EACH ROW WHEN (NEW.status = 'deactivated' AND OLD.status <> 'deactivated') EXECUTE FUNCTION revoke_account_keys();
COMMENT ON TRIGGER accounts_deactivation ON accounts IS 'W02';


-- Who may see what (X01) -----------------------------------------------------------------------------------------

ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE accounts FORCE ROW LEVEL SECURITY;
ALTER TABLE organizations ENABLE ROW LEVEL SECURITY;
ALTER TABLE organizations FORCE ROW LEVEL SECURITY;
ALTER TABLE organization_members ENABLE ROW LEVEL SECURITY;
ALTER TABLE organization_members FORCE ROW LEVEL SECURITY;
ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE api_keys FORCE ROW LEVEL SECURITY;

CREATE POLICY accounts_visible ON accounts TO hub_app
    USING (id = (SELECT current_account_id())
           OR home_org_id = (SELECT current_org_id())
           OR (SELECT is_platform_admin())
           OR EXISTS (SELECT FROM organization_members m WHERE m.org_id = (SELECT current_org_id()) AND m.account_id = accounts.id))
    WITH CHECK (kind <> 'system' AND (home_org_id = (SELECT current_org_id()) OR (SELECT is_platform_admin())
                OR id = (SELECT current_account_id())
                OR EXISTS (SELECT FROM organization_members m WHERE m.org_id = (SELECT current_org_id()) AND m.account_id = accounts.id)));
CREATE POLICY organizations_visible ON organizations TO hub_app
    USING (id = (SELECT current_org_id()) OR (SELECT is_platform_admin()));
CREATE POLICY organization_members_tenant ON organization_members TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY api_keys_tenant ON api_keys TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY api_keys_limited ON api_keys AS RESTRICTIVE TO hub_app
    USING (account_id = (SELECT current_account_id()) OR (SELECT current_membership_rank()) >= 2 OR (SELECT is_platform_admin()));
COMMENT ON POLICY accounts_visible ON accounts IS 'X01: to itself, to those who share the current organisation, to its home organisation, and to platform admins.';
COMMENT ON POLICY organizations_visible ON organizations IS 'X01: to its members, and to platform admins: the row, not what lies under it.';
COMMENT ON POLICY api_keys_limited ON api_keys IS 'A member sees its own keys, an admin the organisation''s.';

CREATE POLICY accounts_authentication ON accounts FOR SELECT TO hub_auth USING (true);
CREATE POLICY organizations_authentication ON organizations FOR SELECT TO hub_auth USING (true);
CREATE POLICY organization_members_authentication ON organization_members FOR SELECT TO hub_auth USING (true);
CREATE POLICY api_keys_authentication ON api_keys FOR SELECT TO hub_auth USING (true);

CREATE POLICY accounts_search ON accounts FOR SELECT TO hub_search USING (true);
CREATE POLICY organization_members_search ON organization_members FOR SELECT TO hub_search USING (true);

CREATE POLICY accounts_control_plane ON accounts TO hub_system USING (true);
CREATE POLICY organizations_control_plane ON organizations TO hub_system USING (true);
CREATE POLICY organization_members_control_plane ON organization_members TO hub_system USING (true);
CREATE POLICY api_keys_control_plane ON api_keys TO hub_system USING (true);

-- Status and access level are guarded by triggers; what nobody may choose is not granted.
GRANT SELECT ON reserved_email_domains, account_status_transitions TO hub_app, hub_system;
GRANT SELECT, DELETE ON accounts, organization_members TO hub_app;
GRANT INSERT (id, kind, access_level, home_org_id, display_name, email, data, metadata),
      UPDATE (access_level, status, display_name, email, data, metadata) ON accounts TO hub_app;
GRANT SELECT, UPDATE (slug, name, deleted_at, data, metadata) ON organizations TO hub_app;
GRANT INSERT (org_id, account_id, membership_level, metadata), UPDATE (membership_level, metadata) ON organization_members TO hub_app;
GRANT SELECT (org_id, id, account_id, name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, last_used_at, metadata, revision, created_at, updated_at),
      INSERT (org_id, id, account_id, name, key_hash, scopes, resources, tags, expires_at, metadata),
      UPDATE (name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, metadata) ON api_keys TO hub_app;
GRANT SELECT ON accounts, organizations, organization_members, api_keys TO hub_auth;
GRANT SELECT ON accounts, organization_members TO hub_search;
GRANT SELECT, INSERT, UPDATE, DELETE ON accounts, organizations, organization_members, api_keys TO hub_system;


-- Authentication -------------------------------------------------------------------------------------------------

CREATE FUNCTION authenticate(p_key_hash bytea, p_scopes text[], p_level text, p_session_id uuid,
    OUT org_id uuid, OUT account_id uuid, OUT key_id uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_scopes     text[];
    v_resources  text[];
    v_level      text;
    v_membership text;
    v_platform   boolean;
    v_missing    text[];
BEGIN
    SELECT k.org_id, k.account_id, k.id, k.scopes, k.resources, a.access_level, m.membership_level
    INTO org_id, account_id, key_id, v_scopes, v_resources, v_level, v_membership
    FROM api_keys k
    JOIN accounts a ON a.id = k.account_id
    JOIN organizations o ON o.id = k.org_id
    JOIN organization_members m ON (m.org_id, m.account_id) = (k.org_id, k.account_id)
    WHERE k.key_hash = p_key_hash
      AND k.enabled
      AND k.revoked_at IS NULL
      AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
      AND a.status = 'active'
      AND o.deleted_at IS NULL;
    IF NOT FOUND THEN
        PERFORM raise_rule('unauthenticated', 'The key is not valid.', '28000');
    END IF;

    IF v_resources <> '{}' THEN -- limited to projects: whoever holds it, it does not reach what is above them
        v_membership := 'member';
        v_level := 'member';
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
    v_platform := 'platform:*' = ANY (v_scopes);
    IF p_level IS DISTINCT FROM v_membership AND NOT v_platform AND (membership_rank(v_membership) >= membership_rank(p_level)) IS NOT TRUE THEN
        PERFORM raise_rule('insufficient_level', format('This takes the membership level %s.', p_level), '42501');
    END IF;
    IF p_session_id IS NOT NULL THEN
        PERFORM FROM sessions s WHERE (s.org_id, s.id) = (authenticate.org_id, p_session_id)
            AND (v_resources = '{}' OR 'project:' || s.project_id = ANY (v_resources));
        IF NOT FOUND THEN
            PERFORM raise_rule('acting_session_not_found', 'There is no such session.', '23503');
        END IF;
    END IF;

    PERFORM set_config('hub.org_id', org_id::text, true),
            set_config('hub.account_id', account_id::text, true),
            set_config('hub.key_id', key_id::text, true),
            set_config('hub.key_scopes', array_to_string(v_scopes, ' '), true),
            set_config('hub.project_ids', CASE WHEN v_resources = '{}' THEN '' ELSE replace(v_resources::text, 'project:', '') END, true),
            set_config('hub.membership_level', v_membership, true),
            set_config('hub.platform', CASE WHEN v_platform THEN 'on' ELSE '' END, true),
            set_config('hub.session_id', coalesce(p_session_id::text, ''), true),
            set_config('hub.actor_source', 'api', true);
END $$;
COMMENT ON FUNCTION authenticate(bytea, text[], text, uuid) IS
    'Finds the key, checks that it, its account and its organisation are in force, that it covers the scopes and its holder has the membership level, and sets the caller for this transaction. It rides in front of each request''s first statement, so a revoked key fails on the next request, on every replica. S05: every way to fail is the same 28000 unauthenticated.';

CREATE FUNCTION record_key_uses(p_org_ids uuid[], p_key_ids uuid[], p_times timestamptz[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    UPDATE api_keys k SET last_used_at = u.used_at
    FROM unnest(p_org_ids, p_key_ids, p_times) u(org_id, key_id, used_at)
    WHERE (k.org_id, k.id) = (u.org_id, u.key_id) AND coalesce(k.last_used_at, '-infinity') < u.used_at - interval '1 minute';
$$;
COMMENT ON FUNCTION record_key_uses(uuid[], uuid[], timestamptz[]) IS 'Notes when keys were last used: what a replica saw since it was called last, in one statement.';


-- Searching (S04) ------------------------------------------------------------------------------------------------

CREATE FUNCTION search_accounts(p_text text, p_limit integer) RETURNS SETOF accounts
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM set_config('pg_trgm.word_similarity_threshold', '0.4', true); -- "jon smit" finds John Smith
    RETURN QUERY
    SELECT a.* FROM accounts a
    WHERE (a.display_name ILIKE '%' || regexp_replace(p_text, '([\\%_])', '\\\1', 'g') || '%' OR p_text OPERATOR(extensions.<%) a.display_name)
      AND EXISTS (SELECT FROM organization_members m WHERE m.org_id = current_org_id() AND m.account_id = a.id)
    ORDER BY extensions.word_similarity(p_text, a.display_name) DESC, a.display_name, a.id
    LIMIT p_limit;
END $$;
COMMENT ON FUNCTION search_accounts(text, integer) IS
    'S04: accounts of the caller''s organisation whose display name holds the text or something like it, the best first. Trigrams are not leakproof, so that row-level security would keep hub_app from the index: hence a function of hub_search, which filters by the organisation itself.';


-- Organisations: made, handed over -------------------------------------------------------------------------------

CREATE FUNCTION make_organization(p_slug text, p_name text, p_owner_id uuid, p_data jsonb, p_metadata jsonb, p_key_id uuid, p_key_name text, p_key_hash bytea, p_scopes text[])
RETURNS SETOF organizations
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_id uuid := hub_uuidv7();
BEGIN
    SET CONSTRAINTS organizations_owner_is_member_fkey DEFERRED;
    INSERT INTO organizations (id, slug, name, owner_id, data, metadata) VALUES (v_id, p_slug, p_name, p_owner_id, p_data, p_metadata);
    INSERT INTO organization_members (org_id, account_id, membership_level) VALUES (v_id, p_owner_id, 'owner');
    SET CONSTRAINTS organizations_owner_is_member_fkey IMMEDIATE;
    INSERT INTO api_keys (org_id, id, account_id, name, key_hash, scopes) VALUES (v_id, p_key_id, p_owner_id, p_key_name, p_key_hash, p_scopes);
    RETURN QUERY SELECT * FROM organizations o WHERE o.id = v_id;
END $$;
COMMENT ON FUNCTION make_organization(text, text, uuid, jsonb, jsonb, uuid, text, bytea, text[]) IS
    'C13: an organisation, its accountable owner''s membership, and the owner''s first key: without it nobody could get in.';

CREATE FUNCTION create_organization(p_slug text, p_name text, p_owner_id uuid, p_data jsonb, p_metadata jsonb, p_key_id uuid, p_key_hash bytea)
RETURNS SETOF organizations
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT is_platform_admin() THEN
        PERFORM raise_rule('insufficient_scope', 'Organisations are made by platform admins.', '42501');
    END IF;
    RETURN QUERY SELECT * FROM make_organization(p_slug, p_name, coalesce(p_owner_id, current_account_id()), p_data, p_metadata, p_key_id, 'first key', p_key_hash, '{*}');
END $$;
COMMENT ON FUNCTION create_organization(text, text, uuid, jsonb, jsonb, uuid, bytea) IS 'X01: by platform admins alone.';

CREATE FUNCTION transfer_organization(p_org_id uuid, p_account_id uuid) RETURNS SETOF organizations
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF p_org_id IS DISTINCT FROM current_org_id() AND NOT is_platform_admin() THEN
        RETURN; -- not there, for this caller
    END IF;
    -- The member before the organisation, as who removes a member does.
    PERFORM FROM organization_members m WHERE (m.org_id, m.account_id) = (p_org_id, p_account_id) FOR UPDATE;
    PERFORM FROM organizations o WHERE o.id = p_org_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE organization_members m SET membership_level = 'owner' WHERE (m.org_id, m.account_id) = (p_org_id, p_account_id);
    IF NOT FOUND THEN
        PERFORM raise_rule('organizations_new_owner_is_member', 'The new owner is no member of the organisation.');
    END IF;
    PERFORM FROM accounts a WHERE a.id = p_account_id AND a.status = 'deactivated';
    IF FOUND THEN
        PERFORM raise_rule('account_is_deactivated', 'The account is deactivated.');
    END IF;
    RETURN QUERY UPDATE organizations o SET owner_id = p_account_id WHERE o.id = p_org_id RETURNING o.*;
END $$;
COMMENT ON FUNCTION transfer_organization(uuid, uuid) IS 'W16: promotes the new owner, then moves owner_id. The old one stays a member at level owner. No row where the organisation is not the caller''s to see.';


-- First start, and the operator's way in -------------------------------------------------------------------------

CREATE FUNCTION bootstrap_hub(p_org_slug text, p_org_name text, p_admin_name text, p_key_hash bytea, p_admin_email text DEFAULT NULL, OUT org_id uuid, OUT account_id uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('bootstrap_hub', 0)); -- several replicas may start at once
    IF EXISTS (SELECT FROM organizations) THEN
        RETURN;
    END IF;
    PERFORM set_config('hub.actor_source', 'bootstrap', true);
    INSERT INTO accounts (kind, access_level, display_name, email) VALUES ('human', 'admin', p_admin_name, p_admin_email)
    RETURNING id INTO account_id;
    SELECT o.id INTO org_id
    FROM make_organization(p_org_slug, p_org_name, account_id, '{}', '{}', hub_uuidv7(), 'first admin key', p_key_hash, '{*,platform:*}') o;
END $$;
COMMENT ON FUNCTION bootstrap_hub(text, text, text, bytea, text) IS
    'The first organisation, its admin and the admin''s key: once, on the first start. Returns NULLs where there is an organisation already.';

CREATE FUNCTION hub_is_bootstrapped() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
RETURN EXISTS (SELECT FROM organizations);
COMMENT ON FUNCTION hub_is_bootstrapped() IS 'Whether there is an organisation, whoever asks.';

CREATE FUNCTION admin_list_accounts(OUT org_slug text, OUT account_id uuid, OUT kind text, OUT access_level text, OUT status text, OUT display_name text, OUT email text, OUT membership_level text)
RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT o.slug, a.id, a.kind, a.access_level, a.status, a.display_name, a.email, m.membership_level
    FROM accounts a
    LEFT JOIN organization_members m ON m.account_id = a.id
    LEFT JOIN organizations o ON o.id = m.org_id
    WHERE a.kind <> 'system'
    ORDER BY o.slug, a.display_name, a.id
$$;
COMMENT ON FUNCTION admin_list_accounts() IS '`hub admin accounts`: all accounts and where they work.';

CREATE FUNCTION admin_create_account(p_org_slug text, p_display_name text, p_email text, p_key_hash bytea) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_org_id     uuid := (SELECT o.id FROM organizations o WHERE o.slug = p_org_slug AND o.deleted_at IS NULL);
    v_account_id uuid;
BEGIN
    IF v_org_id IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('hub.actor_source', 'admin', true);
    INSERT INTO accounts (kind, access_level, display_name, email) VALUES ('human', 'admin', p_display_name, p_email) RETURNING id INTO v_account_id;
    INSERT INTO organization_members (org_id, account_id, membership_level) VALUES (v_org_id, v_account_id, 'owner');
    INSERT INTO api_keys (org_id, account_id, name, key_hash, scopes) VALUES (v_org_id, v_account_id, 'hub admin', p_key_hash, '{*,platform:*}');
    RETURN v_account_id;
END $$;
COMMENT ON FUNCTION admin_create_account(text, text, text, bytea) IS '`hub admin create`: another platform admin, with a key, where no admin can sign in any more. NULL where there is no such organisation.';

CREATE FUNCTION admin_issue_key(p_account_id uuid, p_org_slug text, p_key_hash bytea) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_account accounts;
    v_org_id  uuid;
    v_key_id  uuid;
BEGIN
    SELECT * INTO v_account FROM accounts a WHERE a.id = p_account_id;
    SELECT m.org_id INTO v_org_id
    FROM organization_members m JOIN organizations o ON o.id = m.org_id
    WHERE m.account_id = p_account_id AND o.deleted_at IS NULL AND o.slug = coalesce(p_org_slug, o.slug)
    ORDER BY membership_rank(m.membership_level) DESC, o.created_at LIMIT 1;
    IF v_org_id IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('hub.actor_source', 'admin', true);
    INSERT INTO api_keys (org_id, account_id, name, key_hash, scopes)
    VALUES (v_org_id, p_account_id, 'hub admin', p_key_hash, CASE v_account.access_level WHEN 'admin' THEN '{*,platform:*}' ELSE '{*}' END::text[])
    RETURNING id INTO v_key_id;
    RETURN v_key_id;
END $$;
COMMENT ON FUNCTION admin_issue_key(uuid, text, bytea) IS '`hub admin key`: a new key for somebody who lost theirs. NULL where the account is in no such organisation.';

CREATE FUNCTION admin_set_account_status(p_account_id uuid, p_status text) RETURNS text[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM set_config('hub.actor_source', 'admin', true);
    UPDATE accounts a SET status = p_status WHERE a.id = p_account_id;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN ARRAY(SELECT o.slug FROM organizations o WHERE o.owner_id = p_account_id ORDER BY o.slug);
END $$;
COMMENT ON FUNCTION admin_set_account_status(uuid, text) IS '`hub admin deactivate`, the break-glass, and `activate`. Returns the organisations that the account owns, which want another owner (W02); NULL where there is no such account.';

REVOKE ALL ON FUNCTION authenticate(bytea, text[], text, uuid), record_key_uses(uuid[], uuid[], timestamptz[]), search_accounts(text, integer), revoke_account_keys(),
    make_organization(text, text, uuid, jsonb, jsonb, uuid, text, bytea, text[]), create_organization(text, text, uuid, jsonb, jsonb, uuid, bytea), transfer_organization(uuid, uuid),
    bootstrap_hub(text, text, text, bytea, text), admin_list_accounts(), admin_create_account(text, text, text, bytea), admin_issue_key(uuid, text, bytea), admin_set_account_status(uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION authenticate(bytea, text[], text, uuid), record_key_uses(uuid[], uuid[], timestamptz[]), search_accounts(text, integer),
    create_organization(text, text, uuid, jsonb, jsonb, uuid, bytea), transfer_organization(uuid, uuid) TO hub_app;

-- A function's new owner needs CREATE on the schema, for this moment only.
GRANT CREATE ON SCHEMA public TO hub_auth, hub_system, hub_search;
ALTER FUNCTION authenticate(bytea, text[], text, uuid) OWNER TO hub_auth;
ALTER FUNCTION search_accounts(text, integer) OWNER TO hub_search;
ALTER FUNCTION record_key_uses(uuid[], uuid[], timestamptz[]) OWNER TO hub_system;
ALTER FUNCTION revoke_account_keys() OWNER TO hub_system;
ALTER FUNCTION make_organization(text, text, uuid, jsonb, jsonb, uuid, text, bytea, text[]) OWNER TO hub_system;
ALTER FUNCTION create_organization(text, text, uuid, jsonb, jsonb, uuid, bytea) OWNER TO hub_system;
ALTER FUNCTION transfer_organization(uuid, uuid) OWNER TO hub_system;
ALTER FUNCTION bootstrap_hub(text, text, text, bytea, text) OWNER TO hub_system;
ALTER FUNCTION hub_is_bootstrapped() OWNER TO hub_system;
ALTER FUNCTION admin_list_accounts() OWNER TO hub_system;
ALTER FUNCTION admin_create_account(text, text, text, bytea) OWNER TO hub_system;
ALTER FUNCTION admin_issue_key(uuid, text, bytea) OWNER TO hub_system;
ALTER FUNCTION admin_set_account_status(uuid, text) OWNER TO hub_system;
REVOKE CREATE ON SCHEMA public FROM hub_auth, hub_system, hub_search;
GRANT EXECUTE ON FUNCTION bootstrap_hub(text, text, text, bytea, text), admin_list_accounts(), admin_create_account(text, text, text, bytea),
    admin_issue_key(uuid, text, bytea), admin_set_account_status(uuid, text) TO CURRENT_USER;
