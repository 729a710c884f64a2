-- What every domain stands on: ids, the caller's identity, triggers that keep promises, and the way rules raise.
-- The roles hub_app, hub_auth, hub_system and hub_search exist before the first migration runs (internal/migrate).

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO hub_app, hub_auth, hub_system, hub_search;

-- Where other people's functions live, so that public holds hub's own.
CREATE SCHEMA extensions;
COMMENT ON SCHEMA extensions IS 'PostgreSQL''s own extensions: pg_trgm, for searching names (S04).';
GRANT USAGE ON SCHEMA extensions TO hub_search;
CREATE EXTENSION pg_trgm SCHEMA extensions;


-- Ids (C02) ------------------------------------------------------------------------------------------------------

CREATE FUNCTION hub_uuidv7_at(p_clock bigint) RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN encode(
    int8send((p_clock >> 12 << 16) | 28672 | (p_clock & 4095))      -- 28672 = 0x7000: version 7
    || substring(uuid_send(gen_random_uuid()) FROM 9),              -- a v4's second half has the same variant
    'hex')::uuid;
COMMENT ON FUNCTION hub_uuidv7_at(bigint) IS
    'A UUIDv7 (RFC 9562, method 3) for a clock value: milliseconds since the epoch times 4096 plus the fraction of the millisecond. The other 62 bits are random.';

CREATE FUNCTION hub_uuidv7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN hub_uuidv7_at((extract(epoch FROM clock_timestamp()) * 4096000)::bigint);
COMMENT ON FUNCTION hub_uuidv7() IS
    'C02: the default of every id: a UUIDv7 of now, with the fraction of the millisecond in rand_a, so that ids sort by time alone.';

CREATE FUNCTION hub_uuidv7_clock(p_id uuid) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN ('x' || substr(replace(p_id::text, '-', ''), 1, 12) || substr(replace(p_id::text, '-', ''), 14, 3))::bit(60)::bigint;
COMMENT ON FUNCTION hub_uuidv7_clock(uuid) IS
    'The 60 bits of a UUIDv7 that order it (48 of time, 12 of rand_a): the inverse of hub_uuidv7_at.';

CREATE FUNCTION hub_uuidv7_after(p_floor uuid) RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN hub_uuidv7_at(greatest(
    (extract(epoch FROM clock_timestamp()) * 4096000)::bigint,
    hub_uuidv7_clock(p_floor) + 1));
COMMENT ON FUNCTION hub_uuidv7_after(uuid) IS
    'C02: a UUIDv7 of now, or the next one above the floor where clocks differ or stand still.';

CREATE FUNCTION hub_uuidv7_floor(p_at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN encode(int8send(((extract(epoch FROM p_at) * 4096000)::bigint >> 12 << 16) | 28672 | ((extract(epoch FROM p_at) * 4096000)::bigint & 4095)) || '\x8000000000000000', 'hex')::uuid;
COMMENT ON FUNCTION hub_uuidv7_floor(timestamptz) IS 'C02: the lowest UUIDv7 of a moment: what was made since is above it, so that the primary key finds what is recent.';

CREATE FUNCTION is_uuidv7(p_id uuid) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN get_byte(uuid_send(p_id), 6) >> 4 = 7 AND get_byte(uuid_send(p_id), 8) >> 6 = 2;
COMMENT ON FUNCTION is_uuidv7(uuid) IS 'C02: version 7, RFC variant. The CHECK of every id column.';


-- Who is asking (X01) --------------------------------------------------------------------------------------------
-- authenticate() sets these for one transaction. After a transaction a local setting is '', not NULL: hence nullif.

CREATE FUNCTION current_org_id() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('hub.org_id', true), '')::uuid;
COMMENT ON FUNCTION current_org_id() IS 'X01: the organisation of the calling key. NULL when nobody is signed in, and then no row is visible.';

CREATE FUNCTION current_account_id() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('hub.account_id', true), '')::uuid;
COMMENT ON FUNCTION current_account_id() IS 'The account of the calling key.';

CREATE FUNCTION current_key_id() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('hub.key_id', true), '')::uuid;
COMMENT ON FUNCTION current_key_id() IS 'The calling key.';

CREATE FUNCTION current_key_scopes() RETURNS text[]
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(string_to_array(nullif(current_setting('hub.key_scopes', true), ''), ' '), '{}');
COMMENT ON FUNCTION current_key_scopes() IS 'What the calling key may do: the most that it can grant to another one.';

CREATE FUNCTION current_project_ids() RETURNS uuid[]
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('hub.project_ids', true), '')::uuid[];
COMMENT ON FUNCTION current_project_ids() IS 'The projects that the calling key is limited to; NULL when it is not limited (api_keys.resources).';

CREATE FUNCTION current_session_id() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('hub.session_id', true), '')::uuid;
COMMENT ON FUNCTION current_session_id() IS 'The agent''s session in which the caller acts, where it names one: for the audit log.';

CREATE FUNCTION membership_rank(p_level text) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN array_position(ARRAY['member', 'admin', 'owner'], p_level);
COMMENT ON FUNCTION membership_rank(text) IS 'W14: orders the membership levels: 1 member, 2 admin, 3 owner.';

CREATE FUNCTION current_membership_rank() RETURNS integer
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(membership_rank(current_setting('hub.membership_level', true)), 0);
COMMENT ON FUNCTION current_membership_rank() IS 'The rank of the caller''s level in its organisation; 0 when nobody is signed in.';

CREATE FUNCTION is_platform_admin() RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(current_setting('hub.platform', true), '') = 'on';
COMMENT ON FUNCTION is_platform_admin() IS 'X01: the caller''s account is an admin''s, and its key carries platform:*. Ranks above every membership level, but sees no tenant''s rows but its own.';


-- Raising a rule (X02) -------------------------------------------------------------------------------------------

CREATE FUNCTION raise_rule(p_rule text, p_message text, p_sqlstate text DEFAULT '23514') RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = p_sqlstate, CONSTRAINT = p_rule, MESSAGE = p_message;
END $$;
COMMENT ON FUNCTION raise_rule(text, text, text) IS
    'X02: refuses as a constraint does: the rule''s name is the CONSTRAINT, and the API''s error code. 23514 (check_violation) unless told otherwise.';


-- Triggers shared by all tables ----------------------------------------------------------------------------------
-- A function that reads a table pins its search_path: a temporary table of the caller's would stand in for the real one.

CREATE FUNCTION set_updated_at() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := greatest(clock_timestamp(), OLD.updated_at + interval '1 microsecond');
    RETURN NEW;
END $$;
COMMENT ON FUNCTION set_updated_at() IS
    'W22: updated_at moves with every change, also with the second one of a transaction, where now() stands still.';

CREATE FUNCTION touch_row() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := greatest(clock_timestamp(), OLD.updated_at + interval '1 microsecond');
    NEW.revision := OLD.revision + 1;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION touch_row() IS 'W22: updated_at, and the revision that the API shows as ETag. Nobody sets either by hand. Its triggers compare rows by their bytes (*<>): for jsonb 1.0 equals 1.00, for us it does not (X07).';

CREATE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM public.raise_rule(TG_NAME, format('%s cannot be changed once it is written.', TG_ARGV[0]));
END $$;
COMMENT ON FUNCTION refuse_change() IS
    'C04, S13: immutable columns. The trigger''s WHEN compares the columns, its argument names them for the reader, its name is the rule.';

CREATE FUNCTION require_platform_admin() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF public.current_account_id() IS NOT NULL AND NOT public.is_platform_admin() THEN
        PERFORM public.raise_rule(TG_NAME, TG_ARGV[0], '42501');
    END IF;
    RETURN coalesce(NEW, OLD);
END $$;
COMMENT ON FUNCTION require_platform_admin() IS
    'X01: what only a platform admin may do. Where nobody is signed in (the owner in psql, a worker) privileges alone decide, as in every rule about the caller.';

CREATE FUNCTION refuse_unless_cascade() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_parent_exists boolean;
    v_changed       jsonb;
    v_query         text;
BEGIN
    IF TG_OP = 'DELETE' THEN
        -- A cascade deletes children after their parent is gone: nobody else can bring that about.
        IF TG_NARGS >= 3 THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE org_id = $1 AND id = $2)', TG_ARGV[0])
            INTO v_parent_exists
            USING (to_jsonb(OLD) ->> TG_ARGV[1])::uuid, (to_jsonb(OLD) ->> TG_ARGV[2])::uuid;
            IF NOT v_parent_exists THEN
                RETURN OLD;
            END IF;
        END IF;
    ELSIF TG_OP = 'UPDATE' AND TG_NARGS > 3 THEN
        -- ON DELETE SET NULL is an UPDATE: let exactly that through, a listed column that becomes NULL when its target is gone.
        SELECT coalesce(jsonb_object_agg(n.key, n.value), '{}') INTO v_changed
        FROM jsonb_each(to_jsonb(NEW)) n
        WHERE n.value IS DISTINCT FROM to_jsonb(OLD) -> n.key;
        v_parent_exists := EXISTS (SELECT FROM jsonb_each(v_changed) c WHERE c.value <> 'null' OR NOT c.key = ANY (TG_ARGV[3:]));
        FOR v_query IN
            SELECT format('SELECT EXISTS (SELECT FROM %s r WHERE %s)', f.confrelid::regclass,
                          string_agg(format('r.%I = ($1).%I', r.attname, o.attname), ' AND '))
            FROM pg_constraint f, unnest(f.conkey, f.confkey) k(own, referred), pg_attribute o, pg_attribute r
            WHERE f.conrelid = TG_RELID AND f.contype = 'f' AND f.confdeltype = 'n'
              AND (o.attrelid, o.attnum) = (f.conrelid, k.own) AND (r.attrelid, r.attnum) = (f.confrelid, k.referred)
            GROUP BY f.oid
            HAVING bool_or(v_changed ? o.attname::text AND (f.confdelsetcols IS NULL OR k.own = ANY (f.confdelsetcols)))
        LOOP
            EXIT WHEN v_parent_exists;
            EXECUTE v_query INTO v_parent_exists USING OLD;
        END LOOP;
        IF NOT v_parent_exists THEN
            RETURN NEW;
        END IF;
    END IF;
    PERFORM raise_rule(TG_NAME, format('Rows of %s are only ever added.', TG_TABLE_NAME));
END $$;
COMMENT ON FUNCTION refuse_unless_cascade() IS
    'Append-only tables. Arguments: parent table, own column with the parent''s org, own column with the parent''s id, then the columns that a SET NULL may clear. Without arguments nothing passes.';


-- Opaque metadata (W01) ------------------------------------------------------------------------------------------

CREATE FUNCTION is_metadata(p_metadata jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF p_metadata = '{}' THEN
        RETURN true;
    END IF;
    RETURN jsonb_typeof(p_metadata) = 'object' AND NOT EXISTS (
        SELECT FROM jsonb_each(CASE jsonb_typeof(p_metadata) WHEN 'object' THEN p_metadata ELSE '{}' END) e
        WHERE e.key !~ '^_[a-z][a-z0-9_]*$' OR jsonb_typeof(e.value) <> 'object');
END $$;
COMMENT ON FUNCTION is_metadata(jsonb) IS
    'W01: metadata is opaque to the hub and holds one object per subsystem, under a key of the form _subsystem. Known fields live in columns or in data.';

CREATE FUNCTION jsonb_merge_patch(p_target jsonb, p_patch jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    v_result jsonb;
    v_key    text;
    v_value  jsonb;
BEGIN
    IF jsonb_typeof(p_patch) <> 'object' THEN
        RETURN p_patch;
    END IF;
    v_result := CASE jsonb_typeof(p_target) WHEN 'object' THEN p_target ELSE '{}' END;
    FOR v_key, v_value IN SELECT key, value FROM jsonb_each(p_patch) LOOP
        IF v_value = 'null' THEN
            v_result := v_result - v_key;
        ELSE
            v_result := v_result || jsonb_build_object(v_key, public.jsonb_merge_patch(v_result -> v_key, v_value));
        END IF;
    END LOOP;
    RETURN v_result;
END $$;
COMMENT ON FUNCTION jsonb_merge_patch(jsonb, jsonb) IS 'RFC 7396 JSON merge patch: what a PATCH of a JSON column means.';
