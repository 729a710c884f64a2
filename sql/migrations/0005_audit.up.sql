-- What is on record, for how long, and what goes with a deleted organisation (C01, W09, W12, X03).


-- The audit log --------------------------------------------------------------------------------------------------
-- Each organisation has a chain of entries, and the platform one. Triggers write them, whoever makes the change; each entry's
-- hash covers its content and the hash before it.

CREATE TABLE audit_chains (
    chain_id        uuid        NOT NULL,
    position        bigint      NOT NULL DEFAULT 0,
    hash            bytea       NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),
    anchor_position bigint      NOT NULL DEFAULT 0,
    anchor_hash     bytea       NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT audit_chains_pkey PRIMARY KEY (chain_id),
    CONSTRAINT audit_chains_hash_length_check CHECK (octet_length(hash) = 32 AND octet_length(anchor_hash) = 32),
    CONSTRAINT audit_chains_anchor_behind_head_check CHECK (anchor_position BETWEEN 0 AND position)
);
COMMENT ON TABLE audit_chains IS 'X03: the head of each chain, which its writers queue for, and the anchor: the last entry that retention removed.';
COMMENT ON COLUMN audit_chains.chain_id IS 'The organisation''s id, or 00000000-0000-0000-0000-000000000000 for the platform. It outlives the organisation.';
COMMENT ON COLUMN audit_chains.hash IS 'The newest entry''s hash. Noted somewhere else, it proves later that nothing before it was rewritten.';
COMMENT ON COLUMN audit_chains.anchor_hash IS 'The hash of the last entry that retention removed: what the oldest one that is left follows.';

CREATE TABLE audit_logs (
    chain_id          uuid        NOT NULL,
    id                uuid        NOT NULL DEFAULT hub_uuidv7(),
    position          bigint      NOT NULL,
    org_id            uuid,
    session_id        uuid,
    owner_id          uuid        NOT NULL,
    actor_source      text        NOT NULL,
    database_user     text        NOT NULL,
    api_key_id        uuid,
    acting_session_id uuid,
    action            text        NOT NULL,
    target_type       text        NOT NULL,
    target_id         uuid,
    changes           jsonb       NOT NULL DEFAULT '{}',
    previous_hash     bytea       NOT NULL,
    hash              bytea       NOT NULL,
    created_at        timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT audit_logs_pkey PRIMARY KEY (chain_id, id),
    CONSTRAINT audit_logs_position_key UNIQUE (chain_id, position),
    CONSTRAINT audit_logs_chain_id_fkey FOREIGN KEY (chain_id) REFERENCES audit_chains (chain_id) ON DELETE RESTRICT,
    CONSTRAINT audit_logs_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations (id) ON DELETE SET NULL,
    CONSTRAINT audit_logs_session_id_fkey FOREIGN KEY (chain_id, session_id) REFERENCES sessions (org_id, id) ON DELETE SET NULL (session_id),
    CONSTRAINT audit_logs_owner_id_fkey FOREIGN KEY (owner_id) REFERENCES accounts (id) ON DELETE RESTRICT,
    CONSTRAINT audit_logs_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT audit_logs_org_is_chain_check CHECK (org_id = chain_id),
    CONSTRAINT audit_logs_actor_source_check CHECK (actor_source IN ('api', 'psql', 'bootstrap', 'worker', 'admin')),
    CONSTRAINT audit_logs_action_shape_check CHECK (action ~ '^[a-z]+(_[a-z]+)*[.][a-z]+(_[a-z]+)*$'),
    CONSTRAINT audit_logs_hash_length_check CHECK (octet_length(hash) = 32 AND octet_length(previous_hash) = 32)
);
COMMENT ON TABLE audit_logs IS 'W12, X03: who changed what of identity, keys, roles, secrets and retention. Append-only; retention removes a prefix.';
COMMENT ON COLUMN audit_logs.chain_id IS 'The organisation whose chain this is, or zeros for the platform''s. Immutable, and what row-level security looks at.';
COMMENT ON COLUMN audit_logs.position IS 'Counts from 1 without gaps in each chain.';
COMMENT ON COLUMN audit_logs.org_id IS 'The organisation while it exists.';
COMMENT ON COLUMN audit_logs.session_id IS 'The acting session while it exists.';
COMMENT ON COLUMN audit_logs.owner_id IS 'C01: the actor. The system account where nobody is signed in. An account with history is deactivated, never deleted.';
COMMENT ON COLUMN audit_logs.actor_source IS 'api; psql (a statement outside of hub); bootstrap (first start); worker (sweepers); admin (the hub admin command).';
COMMENT ON COLUMN audit_logs.database_user IS 'PostgreSQL''s session_user.';
COMMENT ON COLUMN audit_logs.api_key_id IS 'The key that was used; a snapshot, it may be gone.';
COMMENT ON COLUMN audit_logs.acting_session_id IS 'The agent''s session in which the actor said to act; a snapshot, it may be gone.';
COMMENT ON COLUMN audit_logs.action IS 'noun.verb';
COMMENT ON COLUMN audit_logs.changes IS 'What changed: {"column": {"before": ..., "after": ...}}. Personal and opaque values only as {"changed": true}; secrets not at all.';
COMMENT ON COLUMN audit_logs.previous_hash IS 'The hash of the entry before.';
COMMENT ON COLUMN audit_logs.hash IS 'SHA-256 of this entry''s content, its place and previous_hash: see audit_hash.';
COMMENT ON CONSTRAINT audit_logs_owner_id_fkey ON audit_logs IS 'C01';
COMMENT ON CONSTRAINT audit_logs_action_shape_check ON audit_logs IS 'W12';

CREATE UNIQUE INDEX audit_logs_created_at_key ON audit_logs (chain_id, created_at);
COMMENT ON INDEX audit_logs_created_at_key IS 'Times within a chain only rise: what lists go by.';
CREATE INDEX audit_logs_org_id_idx ON audit_logs (org_id);
CREATE INDEX audit_logs_session_id_idx ON audit_logs (chain_id, session_id);
CREATE INDEX audit_logs_owner_id_idx ON audit_logs (owner_id, chain_id, created_at);
CREATE INDEX audit_logs_api_key_id_idx ON audit_logs (chain_id, api_key_id, created_at);
CREATE INDEX audit_logs_acting_session_id_idx ON audit_logs (chain_id, acting_session_id, created_at);
CREATE INDEX audit_logs_action_idx ON audit_logs (chain_id, action, created_at);
CREATE INDEX audit_logs_target_type_idx ON audit_logs (chain_id, target_type, created_at);
CREATE INDEX audit_logs_target_id_idx ON audit_logs (chain_id, target_id, created_at);

CREATE FUNCTION audit_hash(p_row audit_logs) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sha256(convert_to(jsonb_build_array(
    (p_row).chain_id, (p_row).position, (p_row).id, (extract(epoch FROM (p_row).created_at) * 1000000)::bigint,
    (p_row).owner_id, (p_row).actor_source, (p_row).database_user, (p_row).api_key_id, (p_row).acting_session_id,
    (p_row).action, (p_row).target_type, (p_row).target_id, (p_row).changes, encode((p_row).previous_hash, 'hex'))::text, 'UTF8'));
COMMENT ON FUNCTION audit_hash(audit_logs) IS
    'X03: SHA-256 of the UTF-8 text that PostgreSQL gives for the JSON array of: chain, position, id, microseconds since the epoch, actor, source, database user, key, acting session, action, target''s type and id, changes, previous hash in hex. Not of org_id and session_id, which become NULL with their targets.';

CREATE TRIGGER audit_logs_append_only BEFORE UPDATE ON audit_logs
    FOR EACH ROW EXECUTE FUNCTION refuse_unless_cascade('', '', '', 'org_id', 'session_id');
COMMENT ON TRIGGER audit_logs_append_only ON audit_logs IS 'X03';
CREATE TRIGGER audit_logs_never_truncated BEFORE TRUNCATE ON audit_logs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_unless_cascade();

CREATE FUNCTION refuse_audit_removal() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF OLD.position > (SELECT c.anchor_position FROM audit_chains c WHERE c.chain_id = OLD.chain_id) THEN
        PERFORM raise_rule(TG_NAME, 'Entries of the audit log are removed from the oldest on, behind the anchor.');
    END IF;
    RETURN OLD;
END $$;
COMMENT ON FUNCTION refuse_audit_removal() IS 'X03: only what the anchor has passed may go, and only retention moves the anchor.';
CREATE TRIGGER audit_logs_removed_behind_anchor BEFORE DELETE ON audit_logs
    FOR EACH ROW EXECUTE FUNCTION refuse_audit_removal();
COMMENT ON TRIGGER audit_logs_removed_behind_anchor ON audit_logs IS 'X03';

CREATE FUNCTION check_audit_chain() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NEW.chain_id <> OLD.chain_id OR NEW.created_at <> OLD.created_at OR NEW.position < OLD.position OR NEW.anchor_position < OLD.anchor_position
       OR NEW.position = OLD.position AND NEW.hash <> OLD.hash
       OR NEW.position > OLD.position AND NOT EXISTS (SELECT FROM audit_logs l WHERE (l.chain_id, l.position, l.hash) = (NEW.chain_id, NEW.position, NEW.hash))
       OR (NEW.anchor_position, NEW.anchor_hash) <> (OLD.anchor_position, OLD.anchor_hash)
          AND NOT EXISTS (SELECT FROM audit_logs l WHERE (l.chain_id, l.position, l.hash) = (NEW.chain_id, NEW.anchor_position, NEW.anchor_hash)) THEN
        PERFORM raise_rule(TG_NAME, 'A chain only grows, and its anchor only moves on, to entries that are there.');
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_audit_chain() IS 'X03: head and anchor are those of entries, and go forward.';
CREATE TRIGGER audit_chains_forward BEFORE UPDATE ON audit_chains
    FOR EACH ROW EXECUTE FUNCTION check_audit_chain();
COMMENT ON TRIGGER audit_chains_forward ON audit_chains IS 'X03';
CREATE TRIGGER audit_chains_touch BEFORE UPDATE ON audit_chains
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER audit_chains_kept BEFORE DELETE ON audit_chains
    FOR EACH ROW EXECUTE FUNCTION refuse_unless_cascade();

CREATE FUNCTION append_audit(p_org_id uuid, p_action text, p_target_type text, p_target_id uuid, p_changes jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_noted uuid[] := string_to_array(nullif(current_setting('hub.audit_chains', true), ''), ' ')::uuid[];
    v_chain audit_chains;
    v_row   audit_logs;
BEGIN
    v_row.chain_id := coalesce(p_org_id, '00000000-0000-0000-0000-000000000000');
    -- What the entry refers to is locked before the chain: who holds these rows already will want the chain.
    PERFORM FROM organizations o WHERE o.id = ANY (v_noted || v_row.chain_id) ORDER BY o.id FOR KEY SHARE;
    PERFORM FROM accounts a WHERE a.id = current_account_id() FOR KEY SHARE;
    SELECT * INTO v_chain FROM audit_chains c WHERE c.chain_id = v_row.chain_id AND v_noted IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        v_noted := v_noted || v_row.chain_id;
        INSERT INTO audit_chains (chain_id)
        SELECT n FROM unnest(v_noted) n WHERE NOT EXISTS (SELECT FROM audit_chains c WHERE c.chain_id = n) ORDER BY n ON CONFLICT DO NOTHING;
        PERFORM FROM audit_chains c WHERE c.chain_id = ANY (v_noted) ORDER BY c.chain_id FOR UPDATE;
        PERFORM set_config('hub.audit_chains', '', true);
        SELECT * INTO v_chain FROM audit_chains c WHERE c.chain_id = v_row.chain_id FOR UPDATE;
    END IF;
    v_row.id := hub_uuidv7();
    v_row.position := v_chain.position + 1;
    v_row.org_id := (SELECT o.id FROM organizations o WHERE o.id = v_row.chain_id);
    v_row.owner_id := coalesce(current_account_id(), '00000000-0000-7000-8000-000000000001');
    v_row.actor_source := coalesce(nullif(current_setting('hub.actor_source', true), ''), 'psql');
    v_row.database_user := session_user;
    v_row.api_key_id := current_key_id();
    v_row.acting_session_id := current_session_id();
    v_row.session_id := (SELECT s.id FROM sessions s WHERE (s.org_id, s.id) = (v_row.chain_id, v_row.acting_session_id));
    v_row.action := p_action;
    v_row.target_type := p_target_type;
    v_row.target_id := p_target_id;
    v_row.changes := p_changes;
    v_row.previous_hash := v_chain.hash;
    v_row.created_at := greatest(clock_timestamp(), v_chain.updated_at + interval '1 microsecond');
    v_row.hash := audit_hash(v_row);
    INSERT INTO audit_logs VALUES (v_row.*);
    UPDATE audit_chains c SET position = v_row.position, hash = v_row.hash, updated_at = v_row.created_at WHERE c.chain_id = v_row.chain_id;
END $$;
COMMENT ON FUNCTION append_audit(uuid, text, text, uuid, jsonb) IS
    'X03: adds an entry to the organisation''s chain, or to the platform''s for NULL. Whoever appends to a chain waits for those before it to commit: so this is called last in a transaction, by deferred triggers, or alone.';

CREATE FUNCTION audit_chain_of(p_table name, p_row jsonb) RETURNS uuid
LANGUAGE sql IMMUTABLE
RETURN coalesce((CASE p_table WHEN 'organizations' THEN p_row ->> 'id' WHEN 'accounts' THEN p_row ->> 'home_org_id' ELSE p_row ->> 'org_id' END)::uuid,
                '00000000-0000-0000-0000-000000000000');
COMMENT ON FUNCTION audit_chain_of(name, jsonb) IS 'The chain that a row''s changes are in: its organisation''s, or the platform''s.';

CREATE FUNCTION note_audit_chain() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_noted text := coalesce(current_setting('hub.audit_chains', true), '');
    v_chain text := audit_chain_of(TG_TABLE_NAME, CASE TG_OP WHEN 'INSERT' THEN to_jsonb(NEW) ELSE to_jsonb(OLD) END)::text;
BEGIN
    IF position(v_chain IN v_noted) = 0 THEN
        PERFORM set_config('hub.audit_chains', ltrim(v_noted || ' ' || v_chain), true);
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION note_audit_chain() IS
    'X03: notes which chains the transaction will append to, so that they are taken in one order: two transactions that change rows of two organisations in opposite orders would wait for each other.';

CREATE FUNCTION record_audit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_old     jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    v_new     jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
    v_row     jsonb := coalesce(v_new, v_old);
    v_changes jsonb;
    v_verb    text;
BEGIN
    SELECT coalesce(jsonb_object_agg(k.name, CASE
               WHEN k.name IN ('data', 'metadata') OR k.name = ANY (TG_ARGV[1:]) THEN '{"changed": true}'
               ELSE jsonb_strip_nulls(jsonb_build_object('before', v_old -> k.name, 'after', v_new -> k.name)) END), '{}')
    INTO v_changes
    FROM jsonb_object_keys(v_row) k(name)
    WHERE k.name NOT IN ('id', 'org_id', 'created_at', 'updated_at', 'revision', 'owner_level', 'last_used_at', 'key_hash', 'ciphertext', 'key_version', 'rotated')
      AND coalesce(v_old -> k.name, 'null') <> coalesce(v_new -> k.name, 'null')
      AND (TG_OP = 'UPDATE' OR v_row -> k.name NOT IN ('{}', '[]', '""'));
    IF TG_OP = 'UPDATE' AND v_changes = '{}' THEN
        RETURN NULL;
    END IF;
    v_verb := CASE
        WHEN TG_OP = 'INSERT' THEN 'create'
        WHEN TG_OP = 'DELETE' THEN CASE WHEN TG_ARGV[0] = 'organization' THEN 'purge' ELSE 'delete' END
        WHEN v_changes ? 'status' THEN CASE v_new ->> 'status' WHEN 'active' THEN 'activate' WHEN 'suspended' THEN 'suspend' WHEN 'deactivated' THEN 'deactivate' ELSE 'update' END
        WHEN v_changes ? 'owner_id' THEN 'transfer'
        WHEN v_changes ? 'deleted_at' THEN CASE WHEN v_new -> 'deleted_at' = 'null' THEN 'restore' ELSE 'delete' END
        WHEN v_changes ? 'revoked_at' THEN 'revoke'
        WHEN v_changes ? 'rotated_to_id' THEN 'rotate'
        WHEN v_changes ? 'enabled' THEN CASE v_new ->> 'enabled' WHEN 'true' THEN 'enable' ELSE 'disable' END
        ELSE 'update' END;
    PERFORM append_audit(audit_chain_of(TG_TABLE_NAME, coalesce(v_old, v_new)), TG_ARGV[0] || '.' || v_verb, TG_ARGV[0],
        coalesce(v_row ->> 'id', v_row ->> 'account_id', v_row ->> 'org_id')::uuid, v_changes);
    RETURN NULL;
END $$;
COMMENT ON FUNCTION record_audit() IS
    'W12: writes the audit entry of a row''s change, into the chain of the row''s organisation. What is bookkeeping or secret by itself leaves none: when a key was used, under which key a secret is, how far a rotation has come. Arguments: the noun of its actions, then columns whose values are personal or long and only named as changed.';

-- Deferred: an immediate one would hold the chain for the rest of the transaction, and two transactions each other's.
CREATE CONSTRAINT TRIGGER accounts_audit AFTER INSERT OR UPDATE OR DELETE ON accounts DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_audit('account', 'display_name', 'email');
CREATE CONSTRAINT TRIGGER organizations_audit AFTER INSERT OR UPDATE OR DELETE ON organizations DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_audit('organization');
CREATE CONSTRAINT TRIGGER organization_members_audit AFTER INSERT OR UPDATE OR DELETE ON organization_members DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_audit('member');
CREATE CONSTRAINT TRIGGER api_keys_audit AFTER INSERT OR UPDATE OR DELETE ON api_keys DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_audit('key');
CREATE CONSTRAINT TRIGGER roles_audit AFTER INSERT OR UPDATE OR DELETE ON roles DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_audit('role', 'description', 'prompt');

-- Only these are changed across organisations in one transaction.
CREATE TRIGGER accounts_audit_chain AFTER INSERT OR UPDATE OR DELETE ON accounts FOR EACH ROW EXECUTE FUNCTION note_audit_chain();
CREATE TRIGGER organizations_audit_chain AFTER INSERT OR UPDATE OR DELETE ON organizations FOR EACH ROW EXECUTE FUNCTION note_audit_chain();
CREATE TRIGGER organization_members_audit_chain AFTER INSERT OR UPDATE OR DELETE ON organization_members FOR EACH ROW EXECUTE FUNCTION note_audit_chain();
CREATE TRIGGER api_keys_audit_chain AFTER INSERT OR UPDATE OF name, scopes, resources, tags, enabled, expires_at, revoked_at, rotated_to_id, metadata OR DELETE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION note_audit_chain();

CREATE FUNCTION verify_audit_chain(p_chain_id uuid, OUT entries bigint, OUT head_position bigint, OUT head_hash bytea, OUT anchor_position bigint,
    OUT broken_position bigint, OUT broken_id uuid, OUT broken_how text)
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
    WITH chain AS (
        SELECT c.chain_id, c.position, c.hash, c.anchor_position, c.anchor_hash FROM audit_chains c WHERE c.chain_id = p_chain_id
        UNION ALL
        SELECT p_chain_id, 0, decode(repeat('00', 32), 'hex'), 0, decode(repeat('00', 32), 'hex')
        WHERE NOT EXISTS (SELECT FROM audit_chains c WHERE c.chain_id = p_chain_id) -- nothing has happened, or the head is gone
    ), walked AS (
        SELECT l.position, l.id, l.hash, l.previous_hash, audit_hash(l) AS computed,
               lag(l.position) OVER w AS before_position, lag(l.hash) OVER w AS before_hash
        FROM audit_logs l WHERE l.chain_id = p_chain_id
        WINDOW w AS (ORDER BY l.position)
    ), judged AS (
        SELECT w.position, w.id, w.hash, greatest(w.before_position, c.anchor_position) AS before_position, CASE
            WHEN w.position <= c.anchor_position OR w.position > c.position THEN 'added'
            WHEN w.position <> greatest(w.before_position, c.anchor_position) + 1 THEN 'missing'
            WHEN w.computed <> w.hash OR w.position = c.position AND w.hash <> c.hash THEN 'altered'
            WHEN w.previous_hash <> CASE WHEN w.before_position > c.anchor_position THEN w.before_hash ELSE c.anchor_hash END THEN 'unlinked' END AS how
        FROM walked w CROSS JOIN chain c
    ), summed AS (
        SELECT count(*) AS entries, max(j.position) AS last_position, min(j.position) FILTER (WHERE j.how IS NOT NULL) AS first_broken FROM judged j
    ), broken AS (
        SELECT CASE j.how WHEN 'missing' THEN j.before_position + 1 ELSE j.position END AS position, CASE WHEN j.how <> 'missing' THEN j.id END AS id, j.how
        FROM summed s JOIN judged j ON j.position = s.first_broken
        UNION ALL
        SELECT coalesce(s.last_position, c.anchor_position) + 1, NULL, 'missing' -- the newest entries
        FROM summed s, chain c WHERE s.first_broken IS NULL AND coalesce(s.last_position, c.anchor_position) < c.position
    )
    SELECT s.entries, c.position, c.hash, c.anchor_position, b.position, b.id, b.how
    FROM chain c CROSS JOIN summed s LEFT JOIN broken b ON true
$$;
COMMENT ON FUNCTION verify_audit_chain(uuid) IS
    'X03: walks a chain and names the first entry that is not as it was written: altered, missing (deleted), unlinked (follows another one), or added outside of the chain. With its reader''s rights.';


-- Retention ------------------------------------------------------------------------------------------------------

CREATE TABLE retention_policies (
    org_id     uuid        NOT NULL,
    audit_days integer,
    session_days integer,
    metadata   jsonb       NOT NULL DEFAULT '{}',
    revision   integer     NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT retention_policies_pkey PRIMARY KEY (org_id),
    CONSTRAINT retention_policies_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations (id) ON DELETE CASCADE,
    CONSTRAINT retention_policies_audit_days_check CHECK (audit_days BETWEEN 1 AND 36500),
    CONSTRAINT retention_policies_session_days_check CHECK (session_days BETWEEN 1 AND 36500),
    CONSTRAINT retention_policies_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE retention_policies IS 'W09: how long an organisation keeps what. Each has a row from its creation on.';
COMMENT ON COLUMN retention_policies.audit_days IS 'Days that audit entries are kept; NULL for ever.';
COMMENT ON COLUMN retention_policies.session_days IS 'Days that archived sessions are kept, from when they were archived; NULL for ever.';
COMMENT ON COLUMN retention_policies.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN retention_policies.revision IS 'Counts changes: the ETag.';

CREATE TRIGGER retention_policies_touch BEFORE UPDATE ON retention_policies
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER retention_policies_identity_immutable BEFORE UPDATE ON retention_policies
    FOR EACH ROW WHEN ((OLD.org_id, OLD.created_at) IS DISTINCT FROM (NEW.org_id, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A retention policy''s organisation and creation time');
CREATE CONSTRAINT TRIGGER retention_policies_audit AFTER UPDATE ON retention_policies DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_audit('retention');

CREATE FUNCTION make_retention_policy() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO retention_policies (org_id) VALUES (NEW.id);
    RETURN NULL;
END $$;
COMMENT ON FUNCTION make_retention_policy() IS 'W09: each organisation has a policy, so that there is one to read and to change.';
CREATE TRIGGER organizations_retention_policy AFTER INSERT ON organizations
    FOR EACH ROW EXECUTE FUNCTION make_retention_policy();

CREATE FUNCTION purge_audit_logs(p_rows integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_policy retention_policies;
    v_chain  audit_chains;
    v_last   audit_logs;
    v_count  bigint;
BEGIN
    FOR v_policy IN SELECT * FROM retention_policies r WHERE r.audit_days IS NOT NULL ORDER BY r.org_id LOOP
        SELECT * INTO v_last FROM audit_logs l
        WHERE l.chain_id = v_policy.org_id AND l.created_at < now() - make_interval(days => v_policy.audit_days)
          AND l.position <= (SELECT c.anchor_position + p_rows FROM audit_chains c WHERE c.chain_id = v_policy.org_id)
        ORDER BY l.created_at DESC LIMIT 1;
        CONTINUE WHEN NOT FOUND OR v_last.action = 'audit.purge' AND NOT EXISTS (
            SELECT FROM audit_logs l WHERE l.chain_id = v_last.chain_id AND l.position < v_last.position); -- it would only replace itself
        SELECT * INTO v_chain FROM audit_chains c WHERE c.chain_id = v_last.chain_id FOR UPDATE SKIP LOCKED; -- writers go first
        CONTINUE WHEN NOT FOUND OR v_chain.anchor_position >= v_last.position;
        UPDATE audit_chains c SET anchor_position = v_last.position, anchor_hash = v_last.hash WHERE c.chain_id = v_chain.chain_id;
        DELETE FROM audit_logs l WHERE l.chain_id = v_chain.chain_id AND l.position <= v_last.position;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        PERFORM set_config('hub.actor_source', 'worker', true);
        PERFORM append_audit(v_chain.chain_id, 'audit.purge', 'audit', NULL, jsonb_build_object(
            'entries', jsonb_build_object('before', v_count), 'anchor_position', jsonb_build_object('before', v_chain.anchor_position, 'after', v_last.position)));
        RETURN v_count;
    END LOOP;
    RETURN 0;
END $$;
COMMENT ON FUNCTION purge_audit_logs(integer) IS 'W09, X03: removes up to so many entries that an organisation no longer keeps, moves its chain''s anchor, and says so in the chain. Returns how many; 0 when nothing is due.';


CREATE FUNCTION expire_sessions(p_rows integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_policy retention_policies;
    v_ids    uuid[];
BEGIN
    FOR v_policy IN SELECT * FROM retention_policies r WHERE r.session_days IS NOT NULL ORDER BY r.org_id LOOP
        SELECT array_agg(due.id) INTO v_ids FROM (
            SELECT s.id FROM sessions s
            WHERE s.org_id = v_policy.org_id AND s.archived_at < now() - make_interval(days => v_policy.session_days) AND s.deleted_at IS NULL
            ORDER BY s.archived_at LIMIT least(p_rows, 100) FOR UPDATE SKIP LOCKED) due;
        CONTINUE WHEN v_ids IS NULL;
        PERFORM set_config('hub.actor_source', 'worker', true);
        PERFORM mark_sessions_deleted(v_policy.org_id, v_ids);
        PERFORM append_audit(v_policy.org_id, 'session.purge', 'session', NULL, jsonb_build_object('sessions', cardinality(v_ids), 'ids', to_jsonb(v_ids)));
        RETURN cardinality(v_ids);
    END LOOP;
    RETURN 0;
END $$;
COMMENT ON FUNCTION expire_sessions(integer) IS
    'W09: deletes up to so many sessions that were archived longer ago than their organisation keeps them, and says so in its audit log. purge_deleted_sessions() takes their rows away. Returns how many; 0 when nothing is due.';


-- What goes with an organisation ---------------------------------------------------------------------------------

CREATE FUNCTION is_deleted_organization(p_org_id uuid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp
RETURN EXISTS (SELECT FROM organizations o WHERE o.id = p_org_id AND o.deleted_at IS NOT NULL);
COMMENT ON FUNCTION is_deleted_organization(uuid) IS 'W12: what the purge may delete from.';

CREATE FUNCTION purge_organizations(p_rows integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_org   organizations;
    v_table regclass;
    v_count bigint;
BEGIN
    SELECT * INTO v_org FROM organizations o WHERE o.deleted_at IS NOT NULL ORDER BY o.deleted_at LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    PERFORM set_config('hub.actor_source', 'worker', true);
    -- From the leaves: what refers to others goes before them. A new table takes part by having an org_id.
    FOR v_table IN
        WITH RECURSIVE tenants AS (
            SELECT c.oid FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'org_id' AND NOT a.attisdropped
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname <> 'audit_logs'
        ), refers AS (
            SELECT DISTINCT f.conrelid, f.confrelid FROM pg_constraint f
            WHERE f.contype = 'f' AND f.conrelid <> f.confrelid AND f.conrelid IN (SELECT oid FROM tenants) AND f.confrelid IN (SELECT oid FROM tenants)
        ), depths AS (
            SELECT oid, 0 AS depth FROM tenants
            UNION ALL
            SELECT r.conrelid, d.depth + 1 FROM depths d JOIN refers r ON r.confrelid = d.oid WHERE d.depth < 20
        )
        SELECT d.oid FROM depths d GROUP BY d.oid ORDER BY max(d.depth) DESC, d.oid
    LOOP
        -- The accountable owner's membership goes with the organisation's own row (C13).
        EXECUTE format('DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT ctid FROM %s WHERE org_id = $1%s LIMIT $2))', v_table, v_table,
                       CASE v_table WHEN 'organization_members'::regclass THEN ' AND account_id <> $3' ELSE '' END)
        USING v_org.id, p_rows, v_org.owner_id;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        IF v_count > 0 THEN
            RETURN v_count;
        END IF;
    END LOOP;
    DELETE FROM organizations o WHERE o.id = v_org.id;
    RETURN 1;
END $$;
COMMENT ON FUNCTION purge_organizations(integer) IS 'W12: deletes up to so many rows of an organisation that is marked as deleted, and at last the organisation. Returns how many; 0 when there is none. Its audit chain stays.';


-- Who may see and do what ----------------------------------------------------------------------------------------

ALTER TABLE audit_chains ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_chains FORCE ROW LEVEL SECURITY;
ALTER TABLE audit_logs ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_logs FORCE ROW LEVEL SECURITY;
ALTER TABLE retention_policies ENABLE ROW LEVEL SECURITY;
ALTER TABLE retention_policies FORCE ROW LEVEL SECURITY;

CREATE FUNCTION audit_chain_of(p_platform boolean) RETURNS uuid
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF p_platform AND NOT public.is_platform_admin() THEN
        PERFORM public.raise_rule('audit_platform_for_admins', 'The platform''s audit log is for platform admins.', '42501');
    END IF;
    RETURN CASE WHEN p_platform THEN '00000000-0000-0000-0000-000000000000' ELSE public.current_org_id() END;
END $$;
COMMENT ON FUNCTION audit_chain_of(boolean) IS 'The chain that the caller asks for: its organisation''s, or the platform''s.';

CREATE POLICY audit_chains_visible ON audit_chains TO hub_app
    USING (CASE WHEN chain_id = '00000000-0000-0000-0000-000000000000' THEN (SELECT is_platform_admin()) ELSE chain_id = (SELECT current_org_id()) END);
CREATE POLICY audit_logs_visible ON audit_logs TO hub_app
    USING (CASE WHEN chain_id = '00000000-0000-0000-0000-000000000000' THEN (SELECT is_platform_admin()) ELSE chain_id = (SELECT current_org_id()) END);
CREATE POLICY retention_policies_tenant ON retention_policies TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY audit_chains_writing ON audit_chains TO hub_system USING (true);
CREATE POLICY audit_logs_writing ON audit_logs TO hub_system USING (true);
CREATE POLICY retention_policies_control_plane ON retention_policies TO hub_system USING (true);
CREATE POLICY projects_purge ON projects TO hub_system USING (is_deleted_organization(org_id));
CREATE POLICY workspaces_purge ON workspaces TO hub_system USING (is_deleted_organization(org_id));
CREATE POLICY roles_purge ON roles TO hub_system USING (is_deleted_organization(org_id));
CREATE POLICY messages_purge ON messages TO hub_system USING (is_deleted_organization(org_id));
CREATE POLICY parts_purge ON parts TO hub_system USING (is_deleted_organization(org_id));

GRANT SELECT ON audit_chains, audit_logs, retention_policies TO hub_app;
GRANT UPDATE (audit_days, session_days, metadata) ON retention_policies TO hub_app;
GRANT SELECT, INSERT ON audit_chains, audit_logs, retention_policies TO hub_system;
GRANT UPDATE (position, hash, anchor_position, anchor_hash, updated_at) ON audit_chains TO hub_system;
GRANT DELETE ON audit_logs, retention_policies TO hub_system;
GRANT SELECT, DELETE ON projects, workspaces, roles TO hub_system;

REVOKE ALL ON FUNCTION append_audit(uuid, text, text, uuid, jsonb), record_audit(), make_retention_policy(), purge_audit_logs(integer), expire_sessions(integer), purge_organizations(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION purge_audit_logs(integer), expire_sessions(integer), purge_organizations(integer) TO hub_app;
GRANT CREATE ON SCHEMA public TO hub_system;
ALTER FUNCTION append_audit(uuid, text, text, uuid, jsonb) OWNER TO hub_system;
ALTER FUNCTION record_audit() OWNER TO hub_system;
ALTER FUNCTION make_retention_policy() OWNER TO hub_system;
ALTER FUNCTION purge_audit_logs(integer) OWNER TO hub_system;
ALTER FUNCTION expire_sessions(integer) OWNER TO hub_system;
ALTER FUNCTION purge_organizations(integer) OWNER TO hub_system;
REVOKE CREATE ON SCHEMA public FROM hub_system;
