-- Roles, sessions, messages and parts: what agents said and did.


-- Roles ----------------------------------------------------------------------------------------------------------

CREATE TABLE roles (
    org_id      uuid        NOT NULL,
    id          uuid        NOT NULL DEFAULT hub_uuidv7(),
    name        text        NOT NULL,
    description text        NOT NULL DEFAULT '',
    prompt      text        NOT NULL DEFAULT '',
    origin      text        NOT NULL DEFAULT 'api',
    data        jsonb       NOT NULL DEFAULT '{}',
    metadata    jsonb       NOT NULL DEFAULT '{}',
    revision    integer     NOT NULL DEFAULT 1,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT roles_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT roles_name_key UNIQUE (org_id, name),
    CONSTRAINT roles_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations (id) ON DELETE RESTRICT,
    CONSTRAINT roles_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT roles_name_length_check CHECK (octet_length(name) BETWEEN 1 AND 200),
    CONSTRAINT roles_origin_check CHECK (origin IN ('api', 'file', 'import')),
    CONSTRAINT roles_data_object_check CHECK (jsonb_typeof(data) = 'object'),
    CONSTRAINT roles_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE roles IS 'Agent roles: what an LLM is told to be in a session. Neither an access level nor a membership level (W14).';
COMMENT ON COLUMN roles.origin IS 'api: created by a caller; file: synced from role files; import: a name that an imported session used, until somebody defines it.';
COMMENT ON COLUMN roles.prompt IS 'The system prompt.';
COMMENT ON COLUMN roles.data IS 'W01: structured settings of the role (model, tools, permissions), typed in the contract.';
COMMENT ON COLUMN roles.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN roles.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT roles_name_key ON roles IS 'C05: what sessions.role_name refers to.';
COMMENT ON CONSTRAINT roles_org_id_fkey ON roles IS 'W12. Indexed by roles_name_key (W03).';
COMMENT ON CONSTRAINT roles_id_version_check ON roles IS 'C02';
COMMENT ON CONSTRAINT roles_metadata_check ON roles IS 'W01';

CREATE TRIGGER roles_touch BEFORE UPDATE ON roles
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER roles_identity_immutable BEFORE UPDATE ON roles
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.created_at) IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A role''s organisation, id and creation time');


-- What sessions look up ------------------------------------------------------------------------------------------

CREATE TABLE session_versions (
    version     text        NOT NULL,
    description text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT session_versions_pkey PRIMARY KEY (version)
);
COMMENT ON TABLE session_versions IS 'W10: the shapes that messages.data and parts.data can have.';
INSERT INTO session_versions (version, description) VALUES
    ('1', 'The message and part fields of opencode 1.18, without the ids, the role and the type, which are columns.');

CREATE TABLE session_run_states (
    run_state   text        NOT NULL,
    description text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT session_run_states_pkey PRIMARY KEY (run_state)
);
COMMENT ON TABLE session_run_states IS 'X10: how a session is.';
INSERT INTO session_run_states (run_state, description) VALUES
    ('idle',    'Nothing is going on; the next message starts a turn.'),
    ('running', 'An agent is at work.'),
    ('waiting', 'The agent waits for somebody: an answer, a permission.'),
    ('errored', 'The last turn failed; it can be taken up again.'),
    ('ended',   'Over for good.');

CREATE TABLE session_run_state_transitions (
    from_state text        NOT NULL,
    to_state   text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT session_run_state_transitions_pkey PRIMARY KEY (from_state, to_state),
    CONSTRAINT session_run_state_transitions_from_state_fkey FOREIGN KEY (from_state) REFERENCES session_run_states (run_state) ON DELETE RESTRICT,
    CONSTRAINT session_run_state_transitions_to_state_fkey FOREIGN KEY (to_state) REFERENCES session_run_states (run_state) ON DELETE RESTRICT
);
COMMENT ON TABLE session_run_state_transitions IS 'X06: which state of a session may follow which. ended is terminal.';
INSERT INTO session_run_state_transitions (from_state, to_state) VALUES
    ('idle', 'running'), ('idle', 'waiting'), ('idle', 'errored'), ('idle', 'ended'),
    ('running', 'idle'), ('running', 'waiting'), ('running', 'errored'), ('running', 'ended'),
    ('waiting', 'idle'), ('waiting', 'running'), ('waiting', 'errored'), ('waiting', 'ended'),
    ('errored', 'idle'), ('errored', 'running'), ('errored', 'ended');
CREATE INDEX session_run_state_transitions_to_state_idx ON session_run_state_transitions (to_state);


-- Sessions -------------------------------------------------------------------------------------------------------

CREATE TABLE sessions (
    org_id           uuid        NOT NULL,
    id               uuid        NOT NULL DEFAULT hub_uuidv7(),
    project_id       uuid        NOT NULL,
    parent_id        uuid,
    account_id       uuid,
    role_name        text,
    slug             text        NOT NULL,
    title            text        NOT NULL DEFAULT '',
    version          text        NOT NULL DEFAULT '1',
    run_state        text        NOT NULL DEFAULT 'idle',
    last_activity_at timestamptz NOT NULL DEFAULT now(),
    archived_at      timestamptz,
    source           text,
    source_id        text,
    source_parent_id text,
    source_updated_at timestamptz,
    data             jsonb       NOT NULL DEFAULT '{}',
    raw              text,
    metadata         jsonb       NOT NULL DEFAULT '{}',
    last_message_id  uuid        NOT NULL DEFAULT '00000000-0000-7000-8000-000000000000',
    last_part_id     uuid        NOT NULL DEFAULT '00000000-0000-7000-8000-000000000000',
    revision         integer     NOT NULL DEFAULT 1,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT sessions_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT sessions_slug_key UNIQUE (org_id, slug),
    CONSTRAINT sessions_source_source_id_key UNIQUE (org_id, source, source_id),
    CONSTRAINT sessions_project_id_fkey FOREIGN KEY (org_id, project_id) REFERENCES projects (org_id, id) ON DELETE RESTRICT,
    CONSTRAINT sessions_parent_id_fkey FOREIGN KEY (org_id, parent_id) REFERENCES sessions (org_id, id) ON DELETE SET NULL (parent_id),
    CONSTRAINT sessions_account_id_fkey FOREIGN KEY (org_id, account_id) REFERENCES organization_members (org_id, account_id) ON DELETE SET NULL (account_id),
    CONSTRAINT sessions_role_name_fkey FOREIGN KEY (org_id, role_name) REFERENCES roles (org_id, name) ON UPDATE CASCADE ON DELETE SET NULL (role_name),
    CONSTRAINT sessions_version_fkey FOREIGN KEY (version) REFERENCES session_versions (version) ON DELETE RESTRICT,
    CONSTRAINT sessions_run_state_fkey FOREIGN KEY (run_state) REFERENCES session_run_states (run_state) ON DELETE RESTRICT,
    CONSTRAINT sessions_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT sessions_slug_shape_check CHECK (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND char_length(slug) <= 100),
    CONSTRAINT sessions_title_length_check CHECK (char_length(title) <= 10000),
    CONSTRAINT sessions_source_shape_check CHECK (source ~ '^[a-z][a-z0-9-]{0,39}$'),
    CONSTRAINT sessions_source_id_length_check CHECK (octet_length(source_id) BETWEEN 1 AND 200),
    CONSTRAINT sessions_source_parent_id_length_check CHECK (octet_length(source_parent_id) BETWEEN 1 AND 200),
    CONSTRAINT sessions_source_whole_check CHECK ((source IS NULL) = (source_id IS NULL) AND (source IS NULL) = (source_updated_at IS NULL)
        AND (source_id IS NOT NULL OR source_parent_id IS NULL)),
    CONSTRAINT sessions_not_own_parent_check CHECK (parent_id <> id),
    CONSTRAINT sessions_data_object_check CHECK (jsonb_typeof(data) = 'object'),
    CONSTRAINT sessions_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE sessions IS 'One conversation of an agent: its messages and their parts hang below it.';
COMMENT ON COLUMN sessions.project_id IS 'S13: immutable.';
COMMENT ON COLUMN sessions.parent_id IS 'S11: a sub-agent is a child session. Set once: at creation, or when an imported session''s parent arrives.';
COMMENT ON COLUMN sessions.account_id IS 'C01: who the session belongs to. NULL once that account has left the organisation or is gone.';
COMMENT ON COLUMN sessions.role_name IS 'C05: the agent role, by name.';
COMMENT ON COLUMN sessions.slug IS 'S09: unique in the organisation. Made by the database when none is given: two words and a suffix.';
COMMENT ON COLUMN sessions.version IS 'W10: the shape of messages.data and parts.data. A source''s own version stands in metadata.';
COMMENT ON COLUMN sessions.run_state IS 'X10: idle, running, waiting, errored or ended; session_run_state_transitions says what may follow what.';
COMMENT ON COLUMN sessions.last_activity_at IS 'X10: when a message or part last arrived. Moves without counting as a revision.';
COMMENT ON COLUMN sessions.archived_at IS 'When the session was put aside; NULL while it is in use.';
COMMENT ON COLUMN sessions.source IS 'C02: the program that the session was imported from; NULL for a session born here.';
COMMENT ON COLUMN sessions.source_id IS 'C02: the session''s id in its source.';
COMMENT ON COLUMN sessions.source_parent_id IS 'The parent''s id in the source, which may be imported later or never.';
COMMENT ON COLUMN sessions.source_updated_at IS 'When the source had last changed the session as it was imported: an older export changes nothing.';
COMMENT ON COLUMN sessions.data IS 'W01: structured settings. For an imported session what its source says of it, less what stands in columns. Strings are escaped (X07).';
COMMENT ON COLUMN sessions.raw IS 'X07: data to the letter, where jsonb would spell a number differently; else NULL.';
COMMENT ON COLUMN sessions.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN sessions.last_message_id IS 'C02: the highest id of a message; the next one is above it, whatever the clocks say.';
COMMENT ON COLUMN sessions.last_part_id IS 'C02: the highest id of a part; the next one is above it.';
COMMENT ON COLUMN sessions.revision IS 'Counts changes of everything but last_activity_at: the ETag.';
COMMENT ON CONSTRAINT sessions_slug_key ON sessions IS 'S09, W03';
COMMENT ON CONSTRAINT sessions_source_source_id_key ON sessions IS 'C02: importing twice never duplicates.';
COMMENT ON CONSTRAINT sessions_project_id_fkey ON sessions IS 'S13, X01';
COMMENT ON CONSTRAINT sessions_parent_id_fkey ON sessions IS 'S11: children outlive their parent.';
COMMENT ON CONSTRAINT sessions_account_id_fkey ON sessions IS 'C01: NULLable, so that SET NULL can do what it says. Through the membership, so that no other organisation''s account fits (X01).';
COMMENT ON CONSTRAINT sessions_role_name_fkey ON sessions IS 'C05: an unknown role is refused; renaming follows; deleting detaches.';
COMMENT ON CONSTRAINT sessions_version_fkey ON sessions IS 'W10';
COMMENT ON CONSTRAINT sessions_run_state_fkey ON sessions IS 'X10';
COMMENT ON CONSTRAINT sessions_id_version_check ON sessions IS 'C02';
COMMENT ON CONSTRAINT sessions_metadata_check ON sessions IS 'W01';

CREATE INDEX sessions_project_id_idx ON sessions (org_id, project_id, id);
CREATE INDEX sessions_parent_id_idx ON sessions (org_id, parent_id, id);
CREATE INDEX sessions_role_name_idx ON sessions (org_id, role_name, id);
CREATE INDEX sessions_account_id_idx ON sessions (org_id, account_id, id);
CREATE INDEX sessions_run_state_idx ON sessions (org_id, run_state, id);
CREATE INDEX sessions_unarchived_idx ON sessions (org_id, id) WHERE archived_at IS NULL;
CREATE INDEX sessions_orphans_idx ON sessions (org_id, source, source_parent_id) WHERE parent_id IS NULL AND source_parent_id IS NOT NULL;
COMMENT ON INDEX sessions_parent_id_idx IS 'W03: the children of a session.';
COMMENT ON INDEX sessions_unarchived_idx IS 'S02';
COMMENT ON INDEX sessions_orphans_idx IS 'Imported children that wait for their parent.';


-- Slugs (S09)

CREATE FUNCTION make_session_slug() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    c_adjectives constant text[] := string_to_array(
        'able amber apt ashen azure bold brave brisk bright broad calm candid clear clever cool cosy '
        'crisp curious daring deft eager early earnest even exact fair fast fine firm fleet fond fresh '
        'gentle glad golden grand happy hardy honest humble jolly keen kind lively lucid lucky mellow merry '
        'mild neat nimble noble patient plain proud quick quiet ready rosy sharp silver steady sunny swift', ' ');
    c_nouns constant text[] := string_to_array(
        'acorn alder anchor aspen badger bay beacon birch brook canyon cedar cliff cloud comet coral crane '
        'creek delta dune eagle ember falcon fern field finch fjord forest fox garden glacier grove harbor '
        'hawk heron hill island ivy lagoon lake lark maple meadow moon moss oak ocean orchid otter '
        'pebble pine planet prairie raven reef river robin sparrow spruce star stone tide valley willow wren', ' ');
    v_random bytea;
BEGIN
    LOOP
        v_random := uuid_send(gen_random_uuid());
        NEW.slug := c_adjectives[1 + get_byte(v_random, 0) % 64] || '-' || c_nouns[1 + get_byte(v_random, 1) % 64]
                    || '-' || substr(encode(v_random, 'hex'), 5, 6);
        EXIT WHEN NOT EXISTS (SELECT FROM sessions s WHERE s.org_id = NEW.org_id AND s.slug = NEW.slug);
    END LOOP;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION make_session_slug() IS 'S09: two words and six hex digits.';
CREATE TRIGGER sessions_slug BEFORE INSERT ON sessions
    FOR EACH ROW WHEN (NEW.slug IS NULL) EXECUTE FUNCTION make_session_slug();


-- Families of imported sessions find each other in whatever order they come

CREATE FUNCTION link_session_to_parent() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- A child and its parent may be imported at the same moment by two connections that do not see each other's row.
    -- Both take the lock of the parent's name, so the later one sees what the earlier one did. In order, against deadlocks.
    PERFORM pg_advisory_xact_lock(l.name)
    FROM (SELECT DISTINCT hashtextextended(concat_ws(' ', NEW.org_id, NEW.source, n), 0) AS name
          FROM unnest(ARRAY[NEW.source_id, NEW.source_parent_id]) n WHERE n IS NOT NULL ORDER BY 1) l;
    IF NEW.parent_id IS NULL AND NEW.source_parent_id IS NOT NULL THEN
        NEW.parent_id := (SELECT s.id FROM sessions s
                          WHERE s.org_id = NEW.org_id AND s.source = NEW.source AND s.source_id = NEW.source_parent_id);
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION link_session_to_parent() IS 'An imported child finds the parent that is already here.';
CREATE TRIGGER sessions_link_to_parent BEFORE INSERT ON sessions
    FOR EACH ROW WHEN (NEW.source_id IS NOT NULL) EXECUTE FUNCTION link_session_to_parent();

CREATE FUNCTION link_session_to_children() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    UPDATE sessions s SET parent_id = NEW.id
    WHERE s.org_id = NEW.org_id AND s.source = NEW.source AND s.source_parent_id = NEW.source_id AND s.parent_id IS NULL;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION link_session_to_children() IS 'An imported parent adopts the children that came before it.';
CREATE TRIGGER sessions_link_to_children AFTER INSERT ON sessions
    FOR EACH ROW WHEN (NEW.source_id IS NOT NULL) EXECUTE FUNCTION link_session_to_children();

CREATE FUNCTION refuse_session_cycle() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_ancestor uuid   := NEW.parent_id;
    v_seen     uuid[] := '{}';
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.parent_id = OLD.parent_id THEN
        RETURN NULL;
    END IF;
    -- A foreign key asks nobody's policy: what a limited key does not see is not there for it.
    IF current_project_ids() IS NOT NULL AND NOT EXISTS (SELECT FROM sessions s WHERE s.org_id = NEW.org_id AND s.id = NEW.parent_id) THEN
        PERFORM raise_rule(p_rule => 'sessions_parent_id_fkey', p_message => 'There is no such session.', p_sqlstate => '23503'); -- as the key does
    END IF;
    WHILE v_ancestor IS NOT NULL LOOP
        IF v_ancestor = NEW.id OR v_ancestor = ANY (v_seen) THEN
            PERFORM raise_rule(TG_NAME, 'A session cannot be its own ancestor.');
        END IF;
        v_seen := v_seen || v_ancestor;
        -- Two transactions could each add one half of a circle: each holds the row that it changed, and here they meet.
        -- A row that is being inserted has no children yet that another transaction could see.
        IF TG_OP = 'UPDATE' THEN
            PERFORM FROM sessions s WHERE s.org_id = NEW.org_id AND s.id = v_ancestor FOR SHARE;
        END IF;
        SELECT s.parent_id INTO v_ancestor FROM sessions s WHERE s.org_id = NEW.org_id AND s.id = v_ancestor;
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER sessions_parent_acyclic AFTER INSERT OR UPDATE OF parent_id ON sessions
    FOR EACH ROW WHEN (NEW.parent_id IS NOT NULL) EXECUTE FUNCTION refuse_session_cycle();
COMMENT ON FUNCTION refuse_session_cycle() IS 'Sessions form a forest: files that name each other as parent are refused.';


-- What may change, and how

CREATE FUNCTION check_session_run_state() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM session_run_state_transitions t WHERE t.from_state = OLD.run_state AND t.to_state = NEW.run_state) THEN
        PERFORM raise_rule(TG_NAME, format('A session that is %s cannot become %s.', OLD.run_state, NEW.run_state));
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_session_run_state() IS 'X06, X10: legal steps are rows of session_run_state_transitions.';
CREATE TRIGGER sessions_run_state_transition BEFORE UPDATE ON sessions
    FOR EACH ROW WHEN (OLD.run_state IS DISTINCT FROM NEW.run_state) EXECUTE FUNCTION check_session_run_state();
COMMENT ON TRIGGER sessions_run_state_transition ON sessions IS 'X06, X10';

CREATE TRIGGER sessions_identity_immutable BEFORE UPDATE ON sessions
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.source, OLD.source_id, OLD.created_at)
        IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.source, NEW.source_id, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A session''s organisation, id, source and creation time');
CREATE TRIGGER sessions_project_immutable BEFORE UPDATE ON sessions
    FOR EACH ROW WHEN (OLD.project_id IS DISTINCT FROM NEW.project_id) EXECUTE FUNCTION refuse_change('A session''s project');
COMMENT ON TRIGGER sessions_project_immutable ON sessions IS 'S13';
CREATE FUNCTION refuse_other_session_parent() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- ON DELETE SET NULL comes after the parent is gone: nobody else can bring that about.
    IF NEW.parent_id IS NULL AND NOT EXISTS (SELECT FROM sessions s WHERE s.org_id = OLD.org_id AND s.id = OLD.parent_id) THEN
        RETURN NEW;
    END IF;
    PERFORM raise_rule(TG_NAME, 'A session''s parent cannot be changed once it is written.');
END $$;
COMMENT ON FUNCTION refuse_other_session_parent() IS 'S11: a session keeps its parent for as long as there is one.';
CREATE TRIGGER sessions_parent_set_once BEFORE UPDATE ON sessions
    FOR EACH ROW WHEN (OLD.parent_id IS NOT NULL AND OLD.parent_id IS DISTINCT FROM NEW.parent_id) EXECUTE FUNCTION refuse_other_session_parent();
COMMENT ON TRIGGER sessions_parent_set_once ON sessions IS 'From none to a parent, and back when the parent is deleted; never from one to another.';

CREATE TRIGGER sessions_touch BEFORE UPDATE ON sessions
    FOR EACH ROW WHEN ((OLD.parent_id, OLD.account_id, OLD.role_name, OLD.slug, OLD.title, OLD.version, OLD.run_state, OLD.archived_at,
                        OLD.source_parent_id, OLD.source_updated_at, OLD.data::text, OLD.raw, OLD.metadata::text, OLD.revision)
        IS DISTINCT FROM (NEW.parent_id, NEW.account_id, NEW.role_name, NEW.slug, NEW.title, NEW.version, NEW.run_state, NEW.archived_at,
                        NEW.source_parent_id, NEW.source_updated_at, NEW.data::text, NEW.raw, NEW.metadata::text, NEW.revision))
    EXECUTE FUNCTION touch_row();
CREATE TRIGGER sessions_activity BEFORE UPDATE ON sessions
    FOR EACH ROW WHEN ((OLD.last_message_id, OLD.last_part_id, OLD.last_activity_at, OLD.updated_at)
        IS DISTINCT FROM (NEW.last_message_id, NEW.last_part_id, NEW.last_activity_at, NEW.updated_at))
    EXECUTE FUNCTION set_updated_at();
COMMENT ON TRIGGER sessions_activity ON sessions IS 'W22: an append moves updated_at, but is no new revision: an If-Match on the title need not fail because the agent talks.';


-- Messages -------------------------------------------------------------------------------------------------------

CREATE TABLE messages (
    org_id          uuid        NOT NULL,
    id              uuid        NOT NULL DEFAULT hub_uuidv7(),
    session_id      uuid        NOT NULL,
    role            text        NOT NULL,
    source          text,
    source_id       text,
    source_position integer,
    data            jsonb       NOT NULL DEFAULT '{}',
    raw             text,
    metadata        jsonb       NOT NULL DEFAULT '{}',
    revision        integer     NOT NULL DEFAULT 1,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT messages_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT messages_session_id_id_key UNIQUE (org_id, session_id, id),
    CONSTRAINT messages_source_source_id_key UNIQUE (org_id, source, source_id),
    CONSTRAINT messages_session_id_fkey FOREIGN KEY (org_id, session_id) REFERENCES sessions (org_id, id) ON DELETE CASCADE,
    CONSTRAINT messages_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT messages_role_check CHECK (role IN ('user', 'assistant', 'system')),
    CONSTRAINT messages_source_shape_check CHECK (source ~ '^[a-z][a-z0-9-]{0,39}$'),
    CONSTRAINT messages_source_id_length_check CHECK (octet_length(source_id) BETWEEN 1 AND 200),
    CONSTRAINT messages_source_whole_check CHECK ((source IS NULL) = (source_id IS NULL) AND (source IS NULL) = (source_position IS NULL)),
    CONSTRAINT messages_data_object_check CHECK (jsonb_typeof(data) = 'object'),
    CONSTRAINT messages_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE messages IS 'The turns of a session, in the order of their ids (C02).';
COMMENT ON COLUMN messages.id IS 'C02: above every earlier id of its session; the trigger messages_issue_id sees to it. Imported messages: from original time, source order and source id.';
COMMENT ON COLUMN messages.session_id IS 'C04: immutable.';
COMMENT ON COLUMN messages.role IS 'W14: the author: user, assistant or system.';
COMMENT ON COLUMN messages.source IS 'C02: the program that the message was imported from.';
COMMENT ON COLUMN messages.source_id IS 'C02: the message''s id in its source.';
COMMENT ON COLUMN messages.source_position IS 'Its place in the source''s own order, which an export gives back (X07).';
COMMENT ON COLUMN messages.data IS 'W10: the message''s own fields, in the shape that sessions.version names. Strings are escaped (X07).';
COMMENT ON COLUMN messages.raw IS 'X07: data to the letter, where jsonb would spell a number differently; else NULL.';
COMMENT ON COLUMN messages.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN messages.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT messages_session_id_id_key ON messages IS 'C04: what parts refer to, so that a part''s session is its message''s. Also the index of listMessages.';
COMMENT ON CONSTRAINT messages_source_source_id_key ON messages IS 'C02: importing twice never duplicates.';
COMMENT ON CONSTRAINT messages_session_id_fkey ON messages IS 'C04. Indexed by messages_session_id_id_key.';
COMMENT ON CONSTRAINT messages_id_version_check ON messages IS 'C02';
COMMENT ON CONSTRAINT messages_metadata_check ON messages IS 'W01';


-- Parts ----------------------------------------------------------------------------------------------------------

CREATE TABLE parts (
    org_id          uuid        NOT NULL,
    id              uuid        NOT NULL DEFAULT hub_uuidv7(),
    session_id      uuid        NOT NULL,
    message_id      uuid        NOT NULL,
    type            text        NOT NULL,
    source          text,
    source_id       text,
    source_position integer,
    data            jsonb       NOT NULL DEFAULT '{}',
    raw             text,
    metadata        jsonb       NOT NULL DEFAULT '{}',
    revision        integer     NOT NULL DEFAULT 1,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT parts_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT parts_source_source_id_key UNIQUE (org_id, source, source_id),
    CONSTRAINT parts_message_id_fkey FOREIGN KEY (org_id, session_id, message_id) REFERENCES messages (org_id, session_id, id) ON DELETE CASCADE,
    CONSTRAINT parts_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT parts_type_length_check CHECK (octet_length(type) BETWEEN 1 AND 200),
    CONSTRAINT parts_source_shape_check CHECK (source ~ '^[a-z][a-z0-9-]{0,39}$'),
    CONSTRAINT parts_source_id_length_check CHECK (octet_length(source_id) BETWEEN 1 AND 200),
    CONSTRAINT parts_source_whole_check CHECK ((source IS NULL) = (source_id IS NULL) AND (source IS NULL) = (source_position IS NULL)),
    CONSTRAINT parts_data_object_check CHECK (jsonb_typeof(data) = 'object'),
    CONSTRAINT parts_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE parts IS 'What a message consists of: text, reasoning, tool calls, files. Flat (S11): a sub-agent''s work is a child session.';
COMMENT ON COLUMN parts.id IS 'C02: above every earlier id of its session; the trigger parts_issue_id sees to it.';
COMMENT ON COLUMN parts.session_id IS 'C04: immutable, and always its message''s session.';
COMMENT ON COLUMN parts.message_id IS 'C04: immutable.';
COMMENT ON COLUMN parts.type IS 'S10: text, not an enum, so that row-level security does not cost the index. Unknown types are kept as they are.';
COMMENT ON COLUMN parts.source IS 'C02: the program that the part was imported from.';
COMMENT ON COLUMN parts.source_id IS 'C02: the part''s id in its source.';
COMMENT ON COLUMN parts.source_position IS 'Its place in the source''s own order, which an export gives back (X07).';
COMMENT ON COLUMN parts.data IS 'W10: the part''s own fields, in the shape that sessions.version names. Strings are escaped (X07).';
COMMENT ON COLUMN parts.raw IS 'X07: data to the letter, where jsonb would spell a number differently; else NULL.';
COMMENT ON COLUMN parts.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN parts.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT parts_message_id_fkey ON parts IS 'C04: through the session, so that a part''s session is its message''s session.';
COMMENT ON CONSTRAINT parts_source_source_id_key ON parts IS 'C02: importing twice never duplicates.';
COMMENT ON CONSTRAINT parts_id_version_check ON parts IS 'C02';
COMMENT ON CONSTRAINT parts_metadata_check ON parts IS 'W01';

CREATE INDEX parts_message_id_idx ON parts (org_id, session_id, message_id, id);
CREATE INDEX parts_type_session_id_idx ON parts (org_id, type, session_id, id);
COMMENT ON INDEX parts_type_session_id_idx IS
    'S10: all tool parts of a session. type comes before session_id, so that nobody takes this index to find a message''s parts: PostgreSQL thinks that a session has few, and would read all of them for each message.';

CREATE TRIGGER messages_touch BEFORE UPDATE ON messages
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER messages_identity_immutable BEFORE UPDATE ON messages
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.source, OLD.source_id, OLD.created_at)
        IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.source, NEW.source_id, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A message''s organisation, id, source and creation time');
CREATE TRIGGER messages_session_immutable BEFORE UPDATE ON messages
    FOR EACH ROW WHEN (OLD.session_id IS DISTINCT FROM NEW.session_id) EXECUTE FUNCTION refuse_change('A message''s session');
COMMENT ON TRIGGER messages_session_immutable ON messages IS 'C04';
CREATE TRIGGER parts_touch BEFORE UPDATE ON parts
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER parts_identity_immutable BEFORE UPDATE ON parts
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.source, OLD.source_id, OLD.created_at)
        IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.source, NEW.source_id, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A part''s organisation, id, source and creation time');
CREATE TRIGGER parts_session_immutable BEFORE UPDATE ON parts
    FOR EACH ROW WHEN ((OLD.session_id, OLD.message_id) IS DISTINCT FROM (NEW.session_id, NEW.message_id))
    EXECUTE FUNCTION refuse_change('A part''s session and message');
COMMENT ON TRIGGER parts_session_immutable ON parts IS 'C04';


-- Ids follow the order of writing (C02) --------------------------------------------------------------------------
-- The row trigger takes the session's row, so that writers of one session queue, and moves an id that is not above
-- the last one. What it has issued in this statement it remembers in a local setting: one look-up per statement,
-- not one per row. The statement trigger is the enforcement: whatever the setting said, ids must be above the last.
-- It also empties the setting, so that another session's next id does not have to be above this one's.

CREATE FUNCTION issue_session_row_id() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_setting constant text := 'hub.issued_' || TG_TABLE_NAME;
    v_issued  text := current_setting(v_setting, true);
    v_floor   uuid;
BEGIN
    IF starts_with(v_issued, NEW.session_id::text) THEN
        v_floor := substr(v_issued, 38)::uuid;
    ELSE
        SELECT greatest(CASE TG_TABLE_NAME WHEN 'messages' THEN s.last_message_id ELSE s.last_part_id END,
                        nullif(substr(v_issued, 38), '')::uuid)
        INTO v_floor
        FROM sessions s WHERE s.org_id = NEW.org_id AND s.id = NEW.session_id FOR NO KEY UPDATE;
    END IF;
    IF NEW.id <= v_floor THEN
        NEW.id := hub_uuidv7_after(v_floor);
    END IF;
    PERFORM set_config(v_setting, NEW.session_id || ' ' || NEW.id, true);
    RETURN NEW;
END $$;
COMMENT ON FUNCTION issue_session_row_id() IS 'C02: an id that is not above the last one of its session becomes the next one.';
CREATE TRIGGER messages_issue_id BEFORE INSERT ON messages
    FOR EACH ROW WHEN (NEW.source_id IS NULL) EXECUTE FUNCTION issue_session_row_id();
CREATE TRIGGER parts_issue_id BEFORE INSERT ON parts
    FOR EACH ROW WHEN (NEW.source_id IS NULL) EXECUTE FUNCTION issue_session_row_id();

CREATE FUNCTION record_session_rows() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_added record;
BEGIN
    FOR v_added IN
        SELECT a.org_id, a.session_id,
               (min(a.id::text COLLATE "C") FILTER (WHERE a.source_id IS NULL))::uuid AS first_issued,
               (max(a.id::text COLLATE "C"))::uuid AS last
        FROM added a GROUP BY a.org_id, a.session_id ORDER BY a.session_id
    LOOP
        IF TG_TABLE_NAME = 'messages' THEN
            UPDATE sessions s
            SET last_message_id  = greatest(s.last_message_id, v_added.last),
                last_activity_at = CASE WHEN v_added.first_issued IS NULL THEN s.last_activity_at ELSE clock_timestamp() END
            WHERE s.org_id = v_added.org_id AND s.id = v_added.session_id
              AND (v_added.first_issued IS NULL OR v_added.first_issued > s.last_message_id);
        ELSE
            UPDATE sessions s
            SET last_part_id     = greatest(s.last_part_id, v_added.last),
                last_activity_at = CASE WHEN v_added.first_issued IS NULL THEN s.last_activity_at ELSE clock_timestamp() END
            WHERE s.org_id = v_added.org_id AND s.id = v_added.session_id
              AND (v_added.first_issued IS NULL OR v_added.first_issued > s.last_part_id);
        END IF;
        IF NOT FOUND THEN
            PERFORM raise_rule(TG_NAME, 'Ids within a session follow the order of writing.');
        END IF;
    END LOOP;
    PERFORM set_config('hub.issued_' || TG_TABLE_NAME, '', true);
    RETURN NULL;
END $$;
COMMENT ON FUNCTION record_session_rows() IS 'C02, X10: after each statement: refuses ids out of order, and keeps the session''s last ids and last_activity_at. Runs as hub_system, because hub_app may not write those columns.';
CREATE TRIGGER messages_in_order AFTER INSERT ON messages
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION record_session_rows();
COMMENT ON TRIGGER messages_in_order ON messages IS 'C02';
CREATE TRIGGER parts_in_order AFTER INSERT ON parts
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION record_session_rows();
COMMENT ON TRIGGER parts_in_order ON parts IS 'C02';

-- Not from PUBLIC: as the trigger of somebody's temporary table it would write into any organisation (X01).
REVOKE ALL ON FUNCTION record_session_rows() FROM PUBLIC;
GRANT CREATE ON SCHEMA public TO hub_system;
ALTER FUNCTION record_session_rows() OWNER TO hub_system;
REVOKE CREATE ON SCHEMA public FROM hub_system;


-- Who may see what (X01) -----------------------------------------------------------------------------------------

ALTER TABLE roles ENABLE ROW LEVEL SECURITY;
ALTER TABLE roles FORCE ROW LEVEL SECURITY;
ALTER TABLE sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE sessions FORCE ROW LEVEL SECURITY;
ALTER TABLE messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE messages FORCE ROW LEVEL SECURITY;
ALTER TABLE parts ENABLE ROW LEVEL SECURITY;
ALTER TABLE parts FORCE ROW LEVEL SECURITY;

CREATE POLICY roles_tenant ON roles TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY sessions_tenant ON sessions TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY messages_tenant ON messages TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY parts_tenant ON parts TO hub_app USING (org_id = (SELECT current_org_id()));
-- What api_keys.resources limits a key to. Messages and parts follow their session, which is asked for only where there is a limit.
CREATE POLICY sessions_limited ON sessions AS RESTRICTIVE TO hub_app
    USING (CASE WHEN (SELECT current_project_ids()) IS NULL THEN true ELSE project_id = ANY ((SELECT current_project_ids())::uuid[]) END);
CREATE POLICY messages_limited ON messages AS RESTRICTIVE TO hub_app
    USING (CASE WHEN (SELECT current_project_ids()) IS NULL THEN true ELSE EXISTS (SELECT FROM sessions s WHERE (s.org_id, s.id) = (messages.org_id, messages.session_id)) END);
CREATE POLICY parts_limited ON parts AS RESTRICTIVE TO hub_app
    USING (CASE WHEN (SELECT current_project_ids()) IS NULL THEN true ELSE EXISTS (SELECT FROM sessions s WHERE (s.org_id, s.id) = (parts.org_id, parts.session_id)) END);
CREATE POLICY sessions_bookkeeping ON sessions TO hub_system USING (true);
CREATE POLICY sessions_authentication ON sessions FOR SELECT TO hub_auth USING (true);

GRANT SELECT ON session_versions, session_run_states, session_run_state_transitions TO hub_app;
-- Who inserts does not choose revision or updated_at (W22): the columns are listed.
GRANT SELECT, UPDATE, DELETE ON roles, messages, parts TO hub_app;
GRANT INSERT (org_id, id, name, description, prompt, origin, data, metadata) ON roles TO hub_app;
GRANT INSERT (org_id, id, session_id, role, source, source_id, source_position, data, raw, metadata, created_at) ON messages TO hub_app;
GRANT INSERT (org_id, id, session_id, message_id, type, source, source_id, source_position, data, raw, metadata, created_at) ON parts TO hub_app;
GRANT SELECT, DELETE ON sessions TO hub_app;
GRANT INSERT (org_id, id, project_id, parent_id, account_id, role_name, slug, title, version, run_state, last_activity_at, archived_at,
              source, source_id, source_parent_id, source_updated_at, data, raw, metadata, created_at),
      UPDATE (project_id, parent_id, account_id, role_name, slug, title, run_state, last_activity_at, archived_at,
              source_parent_id, source_updated_at, data, raw, metadata) ON sessions TO hub_app;
GRANT SELECT ON sessions TO hub_system, hub_auth;
GRANT UPDATE (last_message_id, last_part_id, last_activity_at) ON sessions TO hub_system;
