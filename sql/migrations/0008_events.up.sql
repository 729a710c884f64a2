-- The change feed (X05): what happens is numbered, so that it can be followed live and taken up again without loss.
--
-- Neither a sequence nor the order of transactions' ids is the order in which changes become visible. So writers note their
-- changes unnumbered, in their own transaction and without waiting for anybody; one sequencer numbers what has committed since
-- it last looked; readers ask for what comes behind a number. Rows hold ids and revisions, no content.


-- What writers note ----------------------------------------------------------------------------------------------

CREATE SEQUENCE pending_events_written_order_seq;

CREATE TABLE pending_events (
    org_id        uuid        NOT NULL,
    writer        xid8        NOT NULL DEFAULT pg_current_xact_id(),
    kind          text        NOT NULL,
    row_id        uuid        NOT NULL,
    written_order bigint      NOT NULL DEFAULT nextval('pending_events_written_order_seq'),
    action        text        NOT NULL,
    row_revision  integer     NOT NULL,
    project_id    uuid,
    session_id    uuid,
    text_offset   bigint,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pending_events_pkey PRIMARY KEY (org_id, writer, kind, row_id),
    CONSTRAINT pending_events_kind_check CHECK (kind IN ('session', 'message', 'part', 'task', 'mapping', 'spoke', 'detection')),
    CONSTRAINT pending_events_action_check CHECK (action IN ('created', 'updated', 'deleted', 'streamed'))
) WITH (vacuum_truncate = off);
ALTER SEQUENCE pending_events_written_order_seq OWNED BY pending_events.written_order;
COMMENT ON TABLE pending_events IS 'X05: changes that have no number yet: those of transactions under way, and those that the sequencer takes next. It fills and empties all the time.';
COMMENT ON COLUMN pending_events.writer IS 'The transaction. By it the sequencer finds what has committed since it last looked, without going through what it took before and no vacuum could remove yet.';
COMMENT ON COLUMN pending_events.kind IS 'The noun. A domain that joins the feed adds its own.';
COMMENT ON COLUMN pending_events.written_order IS 'Orders what becomes visible at once: changes of one row queue for its lock, so theirs are in the order of its revisions.';
COMMENT ON COLUMN pending_events.text_offset IS 'X08: of a text that streams in, how long it is.';
COMMENT ON CONSTRAINT pending_events_pkey ON pending_events IS 'X05: coalesced: a transaction that changes a row often notes it once.';
CREATE INDEX pending_events_writer_idx ON pending_events (writer);
CREATE TRIGGER pending_events_touch BEFORE UPDATE ON pending_events
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION set_updated_at();

CREATE FUNCTION record_row_event() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_row        record;
    v_session_id uuid;
    v_project_id uuid;
    v_deleted    boolean := false;
BEGIN
    IF TG_OP = 'DELETE' THEN
        v_row := OLD;
    ELSE
        v_row := NEW;
    END IF;
    CASE TG_TABLE_NAME
        WHEN 'sessions' THEN
            IF TG_OP = 'DELETE' AND v_row.deleted_at IS NOT NULL THEN
                RETURN NULL; -- it was told of when it was marked
            END IF;
            v_deleted := v_row.deleted_at IS NOT NULL;
            v_session_id := v_row.id;
            v_project_id := v_row.project_id;
        WHEN 'messages', 'parts' THEN
            v_session_id := v_row.session_id;
            v_project_id := (SELECT s.project_id FROM sessions s WHERE s.org_id = v_row.org_id AND s.id = v_session_id);
        WHEN 'spokes' THEN NULL; -- of no project
        WHEN 'tasks' THEN
            v_project_id := v_row.project_id;
        ELSE
            v_session_id := v_row.session_id;
            v_project_id := v_row.project_id;
    END CASE;
    INSERT INTO pending_events AS e (org_id, kind, row_id, action, row_revision, project_id, session_id)
    VALUES (v_row.org_id, TG_ARGV[0], v_row.id, CASE WHEN v_deleted OR TG_OP = 'DELETE' THEN 'deleted' WHEN TG_OP = 'INSERT' THEN 'created' ELSE 'updated' END,
            v_row.revision, v_project_id, v_session_id)
    ON CONFLICT (org_id, writer, kind, row_id) DO UPDATE SET
        row_revision = excluded.row_revision,
        action = CASE WHEN excluded.action = 'deleted' OR e.action = 'streamed' THEN excluded.action ELSE e.action END;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION record_row_event() IS 'X05: notes that a row has changed; its argument is the kind. Runs as hub_system, for nobody else writes the feed.';

CREATE FUNCTION record_rows_created() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO pending_events AS e (org_id, kind, row_id, action, row_revision, project_id, session_id)
    SELECT c.org_id, TG_ARGV[0], c.id, 'created', c.revision, s.project_id, c.session_id
    FROM created c JOIN sessions s ON s.org_id = c.org_id AND s.id = c.session_id
    ORDER BY c.id
    ON CONFLICT (org_id, writer, kind, row_id) DO UPDATE SET row_revision = excluded.row_revision, action = excluded.action;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION record_rows_created() IS 'X05: as record_row_event, for all rows of a statement: imports bring many.';

CREATE FUNCTION record_rows_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- What goes with its session or message is not told of: that one is.
    IF TG_TABLE_NAME = 'messages' THEN
        INSERT INTO pending_events AS e (org_id, kind, row_id, action, row_revision, project_id, session_id)
        SELECT d.org_id, TG_ARGV[0], d.id, 'deleted', d.revision, s.project_id, d.session_id
        FROM deleted d JOIN sessions s ON s.org_id = d.org_id AND s.id = d.session_id AND s.deleted_at IS NULL
        ON CONFLICT (org_id, writer, kind, row_id) DO UPDATE SET row_revision = excluded.row_revision, action = excluded.action;
    ELSE
        INSERT INTO pending_events AS e (org_id, kind, row_id, action, row_revision, project_id, session_id)
        SELECT d.org_id, TG_ARGV[0], d.id, 'deleted', d.revision, s.project_id, d.session_id
        FROM deleted d JOIN messages m ON m.org_id = d.org_id AND m.id = d.message_id JOIN sessions s ON s.org_id = d.org_id AND s.id = d.session_id AND s.deleted_at IS NULL
        ON CONFLICT (org_id, writer, kind, row_id) DO UPDATE SET row_revision = excluded.row_revision, action = excluded.action;
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION record_rows_deleted() IS 'X05: as record_row_event, for the messages or parts that a statement has deleted.';

CREATE FUNCTION record_text_streamed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO pending_events AS e (org_id, kind, row_id, action, row_revision, project_id, session_id, text_offset)
    SELECT p.org_id, 'part', p.id, 'streamed', p.revision, s.project_id, p.session_id, NEW.end_offset
    FROM parts p JOIN sessions s ON s.org_id = p.org_id AND s.id = p.session_id
    WHERE p.org_id = NEW.org_id AND p.id = NEW.part_id
    ON CONFLICT (org_id, writer, kind, row_id) DO UPDATE SET row_revision = excluded.row_revision, text_offset = excluded.text_offset;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION record_text_streamed() IS 'X05, X08: notes how long a part''s text is by now.';

CREATE TRIGGER sessions_record AFTER INSERT OR DELETE ON sessions
    FOR EACH ROW EXECUTE FUNCTION record_row_event('session');
CREATE TRIGGER sessions_record_change AFTER UPDATE ON sessions
    FOR EACH ROW WHEN (OLD.revision IS DISTINCT FROM NEW.revision) EXECUTE FUNCTION record_row_event('session');
CREATE TRIGGER messages_record_created AFTER INSERT ON messages
    REFERENCING NEW TABLE AS created FOR EACH STATEMENT EXECUTE FUNCTION record_rows_created('message');
CREATE TRIGGER messages_record_change AFTER UPDATE ON messages
    FOR EACH ROW WHEN (OLD.revision IS DISTINCT FROM NEW.revision) EXECUTE FUNCTION record_row_event('message');
CREATE TRIGGER messages_record_deleted AFTER DELETE ON messages
    REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION record_rows_deleted('message');
CREATE TRIGGER parts_record_created AFTER INSERT ON parts
    REFERENCING NEW TABLE AS created FOR EACH STATEMENT EXECUTE FUNCTION record_rows_created('part');
CREATE TRIGGER parts_record_change AFTER UPDATE ON parts
    FOR EACH ROW WHEN (OLD.revision IS DISTINCT FROM NEW.revision) EXECUTE FUNCTION record_row_event('part');
CREATE TRIGGER parts_record_deleted AFTER DELETE ON parts
    REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION record_rows_deleted('part');
CREATE TRIGGER part_deltas_record AFTER INSERT ON part_deltas
    FOR EACH ROW EXECUTE FUNCTION record_text_streamed();


-- The feed -------------------------------------------------------------------------------------------------------

CREATE TABLE event_heads (
    org_id          uuid        NOT NULL,
    last_position   bigint      NOT NULL DEFAULT 0,
    purged_position bigint      NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT event_heads_pkey PRIMARY KEY (org_id),
    CONSTRAINT event_heads_purged_behind_last_check CHECK (purged_position BETWEEN 0 AND last_position)
);
COMMENT ON TABLE event_heads IS 'X05: how far each organisation''s feed has come. Refers to no organisation: the sequencer must not stumble over one that is being deleted.';
COMMENT ON COLUMN event_heads.purged_position IS 'The last event that is no longer kept: who was further back has to read anew.';
CREATE TRIGGER event_heads_touch BEFORE UPDATE ON event_heads
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION set_updated_at();

CREATE TABLE events (
    org_id       uuid        NOT NULL,
    position     bigint      NOT NULL,
    kind         text        NOT NULL,
    action       text        NOT NULL,
    row_id       uuid        NOT NULL,
    row_revision integer     NOT NULL,
    project_id   uuid,
    session_id   uuid,
    text_offset  bigint,
    changed_at   timestamptz NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT events_pkey PRIMARY KEY (org_id, position)
);
COMMENT ON TABLE events IS 'X05: what has changed, in the order of the feed. Kept for seven days. Outlives the rows that it tells of.';
COMMENT ON COLUMN events.position IS 'Counts from 1 without gaps in each organisation.';
COMMENT ON COLUMN events.row_revision IS 'The row''s revision after the change.';
COMMENT ON COLUMN events.changed_at IS 'When the transaction that made the change began.';
COMMENT ON COLUMN events.created_at IS 'When it got its number: rises with the position.';
COMMENT ON CONSTRAINT events_pkey ON events IS 'X05: what readers go by.';
CREATE TRIGGER events_append_only BEFORE UPDATE ON events
    FOR EACH ROW EXECUTE FUNCTION refuse_unless_cascade();
COMMENT ON TRIGGER events_append_only ON events IS 'X05';


-- The sequencer --------------------------------------------------------------------------------------------------

CREATE TABLE event_sequencers (
    singleton        boolean     NOT NULL DEFAULT true,
    holder           uuid,
    lease_expires_at timestamptz NOT NULL DEFAULT '-infinity',
    seen             pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT event_sequencers_pkey PRIMARY KEY (singleton),
    CONSTRAINT event_sequencers_singleton_check CHECK (singleton)
);
COMMENT ON TABLE event_sequencers IS 'X05: the office of the sequencer: one row, and one holder whose lease ends soon unless it goes on working.';
COMMENT ON COLUMN event_sequencers.seen IS 'Of which transactions the feed has everything: those that this snapshot sees.';
INSERT INTO event_sequencers DEFAULT VALUES;
CREATE TRIGGER event_sequencers_touch BEFORE UPDATE ON event_sequencers
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION set_updated_at();

CREATE FUNCTION number_events(p_holder uuid, p_rows integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
DECLARE
    v_office   event_sequencers;
    v_now      pg_snapshot := pg_current_snapshot();
    v_ended    xid8[];
    v_restored boolean;
    v_taken    integer;
BEGIN
    SELECT * INTO v_office FROM event_sequencers;
    IF v_office.holder IS DISTINCT FROM p_holder AND v_office.lease_expires_at > clock_timestamp() THEN
        RETURN -1;
    END IF;
    -- What was under way when it last looked, and has ended since.
    v_ended := ARRAY(SELECT x FROM pg_snapshot_xip(v_office.seen) x WHERE pg_visible_in_snapshot(x, v_now));
    -- In office for a while, and nothing to do: this writes nothing.
    IF v_office.holder = p_holder AND v_office.lease_expires_at > clock_timestamp() + interval '2 seconds'
       AND NOT EXISTS (SELECT FROM pending_events e WHERE e.writer >= pg_snapshot_xmax(v_office.seen))
       AND NOT EXISTS (SELECT FROM pending_events e WHERE e.writer = ANY (v_ended)) THEN
        RETURN 0;
    END IF;
    SELECT * INTO v_office FROM event_sequencers FOR UPDATE SKIP LOCKED;
    IF NOT FOUND OR v_office.holder IS DISTINCT FROM p_holder AND v_office.lease_expires_at > clock_timestamp() THEN
        RETURN -1;
    END IF;
    v_now := pg_current_snapshot();
    v_ended := ARRAY(SELECT x FROM pg_snapshot_xip(v_office.seen) x WHERE pg_visible_in_snapshot(x, v_now));
    -- Where a dump was restored on another server, transactions count anew: then whatever is there has committed before.
    v_restored := pg_snapshot_xmax(v_now) < pg_snapshot_xmax(v_office.seen);

    WITH news AS (
        SELECT n.* FROM (
            SELECT e.ctid AS place, e.written_order FROM pending_events e
            WHERE e.writer >= pg_snapshot_xmax(v_office.seen) AND e.writer < pg_snapshot_xmax(v_now) AND pg_visible_in_snapshot(e.writer, v_now)
            UNION ALL
            SELECT e.ctid, e.written_order FROM pending_events e WHERE e.writer = ANY (v_ended) AND NOT v_restored
            UNION ALL
            SELECT e.ctid, e.written_order FROM pending_events e WHERE v_restored
        ) n
        ORDER BY n.written_order LIMIT p_rows
    ), taken AS (
        -- By their places, which nobody changes: a join would scan the table, dead rows and all, where the planner thinks that it is empty.
        DELETE FROM pending_events e WHERE e.ctid = ANY (ARRAY(SELECT n.place FROM news n)) RETURNING e.*
    ), latest AS (
        SELECT t.*, max(t.written_order) OVER (PARTITION BY t.org_id, t.kind, t.row_id) AS latest FROM taken t
    ), kept AS (
        -- Of a text that streams in, the latest is enough. Who follows a deleted organisation has been sent away.
        SELECT l.*, row_number() OVER (PARTITION BY l.org_id ORDER BY l.written_order) AS n
        FROM latest l
        WHERE (l.action <> 'streamed' OR l.written_order = l.latest)
          AND EXISTS (SELECT FROM organizations o WHERE o.id = l.org_id AND o.deleted_at IS NULL)
    ), heads AS (
        INSERT INTO event_heads AS h (org_id, last_position)
        SELECT k.org_id, count(*) FROM kept k GROUP BY k.org_id ORDER BY k.org_id
        ON CONFLICT (org_id) DO UPDATE SET last_position = h.last_position + excluded.last_position
        RETURNING h.org_id, h.last_position
    ), numbered AS (
        INSERT INTO events (org_id, position, kind, action, row_id, row_revision, project_id, session_id, text_offset, changed_at)
        SELECT k.org_id, h.last_position - max(k.n) OVER (PARTITION BY k.org_id) + k.n,
               k.kind, k.action, k.row_id, k.row_revision, k.project_id, k.session_id, k.text_offset, k.created_at
        FROM kept k JOIN heads h ON h.org_id = k.org_id
    )
    SELECT count(*) INTO v_taken FROM taken;

    UPDATE event_sequencers SET
        holder = p_holder, lease_expires_at = clock_timestamp() + interval '3 seconds',
        seen = CASE WHEN v_taken < p_rows THEN v_now ELSE v_office.seen END;
    RETURN v_taken;
END $$;
COMMENT ON FUNCTION number_events(uuid, integer) IS
    'X05: numbers so many of the changes that have committed, and returns how many it were; -1 where another sequencer is in office. What a transaction that is still under way has noted comes when it commits, however long that takes, and nobody waits for it.';

CREATE FUNCTION leave_event_office(p_holder uuid) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
BEGIN ATOMIC
    UPDATE event_sequencers SET lease_expires_at = '-infinity' WHERE holder = p_holder;
END;
COMMENT ON FUNCTION leave_event_office(uuid) IS 'X05: the sequencer stops, and another one need not wait for its lease to end.';

CREATE FUNCTION event_positions(p_org_ids uuid[]) RETURNS TABLE (org_id uuid, last_position bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
BEGIN ATOMIC
    SELECT h.org_id, h.last_position FROM event_heads h WHERE h.org_id = ANY (p_org_ids);
END;
COMMENT ON FUNCTION event_positions(uuid[]) IS 'X05: how far these organisations'' feeds have come: what a server asks, on behalf of nobody, to know for whom it has to read on.';

CREATE FUNCTION purge_events(p_rows integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_org_id  uuid;
    v_through bigint;
    v_count   bigint;
BEGIN
    SELECT h.org_id INTO v_org_id
    FROM event_heads h
    CROSS JOIN LATERAL (SELECT e.created_at FROM events e WHERE e.org_id = h.org_id AND e.position > h.purged_position ORDER BY e.position LIMIT 1) oldest
    WHERE oldest.created_at < now() - interval '7 days'
    LIMIT 1;
    IF FOUND THEN
        SELECT max(o.position) INTO v_through
        FROM (SELECT e.position, e.created_at FROM events e JOIN event_heads h ON h.org_id = e.org_id
              WHERE h.org_id = v_org_id AND e.position > h.purged_position ORDER BY e.position LIMIT p_rows) o
        WHERE o.created_at < now() - interval '7 days';
        UPDATE event_heads h SET purged_position = v_through WHERE h.org_id = v_org_id AND h.purged_position < v_through;
        DELETE FROM events e WHERE e.org_id = v_org_id AND e.position <= v_through;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        RETURN v_count;
    END IF;
    -- What came after its organisation had gone.
    SELECT h.org_id INTO v_org_id FROM event_heads h WHERE NOT EXISTS (SELECT FROM organizations o WHERE o.id = h.org_id) LIMIT 1;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    DELETE FROM events e WHERE e.org_id = v_org_id AND e.position IN (SELECT l.position FROM events l WHERE l.org_id = v_org_id ORDER BY l.position LIMIT p_rows);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    IF v_count = 0 THEN
        DELETE FROM event_heads h WHERE h.org_id = v_org_id;
        v_count := 1;
    END IF;
    RETURN v_count;
END $$;
COMMENT ON FUNCTION purge_events(integer) IS 'X05: removes up to so many events that are older than seven days. Returns how many; 0 when nothing is due.';


-- Who may see what (X01) -----------------------------------------------------------------------------------------

ALTER TABLE pending_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE pending_events FORCE ROW LEVEL SECURITY;
ALTER TABLE event_heads ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_heads FORCE ROW LEVEL SECURITY;
ALTER TABLE events ENABLE ROW LEVEL SECURITY;
ALTER TABLE events FORCE ROW LEVEL SECURITY;

CREATE POLICY pending_events_tenant ON pending_events TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY event_heads_tenant ON event_heads TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY events_tenant ON events TO hub_app USING (org_id = (SELECT current_org_id()));
-- What api_keys.resources limits a key to.
CREATE POLICY pending_events_limited ON pending_events AS RESTRICTIVE TO hub_app
    USING (CASE WHEN (SELECT current_project_ids()) IS NULL THEN true ELSE project_id = ANY ((SELECT current_project_ids())::uuid[]) END);
CREATE POLICY events_limited ON events AS RESTRICTIVE TO hub_app
    USING (CASE WHEN (SELECT current_project_ids()) IS NULL THEN true ELSE project_id = ANY ((SELECT current_project_ids())::uuid[]) END);
CREATE POLICY messages_recording ON messages FOR SELECT TO hub_system USING (true);
CREATE POLICY pending_events_bookkeeping ON pending_events TO hub_system USING (true);
CREATE POLICY event_heads_bookkeeping ON event_heads TO hub_system USING (true);
CREATE POLICY events_bookkeeping ON events TO hub_system USING (true);

GRANT SELECT ON pending_events, event_heads, events TO hub_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON pending_events, event_heads TO hub_system;
GRANT SELECT, INSERT, DELETE ON events TO hub_system;
GRANT SELECT, UPDATE ON event_sequencers TO hub_system;
GRANT USAGE ON SEQUENCE pending_events_written_order_seq TO hub_system;

REVOKE ALL ON FUNCTION record_row_event(), record_rows_created(), record_rows_deleted(), record_text_streamed(),
    number_events(uuid, integer), leave_event_office(uuid), event_positions(uuid[]), purge_events(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION number_events(uuid, integer), leave_event_office(uuid), event_positions(uuid[]), purge_events(integer) TO hub_app;
GRANT CREATE ON SCHEMA public TO hub_system;
ALTER FUNCTION record_row_event() OWNER TO hub_system;
ALTER FUNCTION record_rows_created() OWNER TO hub_system;
ALTER FUNCTION record_rows_deleted() OWNER TO hub_system;
ALTER FUNCTION record_text_streamed() OWNER TO hub_system;
ALTER FUNCTION number_events(uuid, integer) OWNER TO hub_system;
ALTER FUNCTION leave_event_office(uuid) OWNER TO hub_system;
ALTER FUNCTION event_positions(uuid[]) OWNER TO hub_system;
ALTER FUNCTION purge_events(integer) OWNER TO hub_system;
REVOKE CREATE ON SCHEMA public FROM hub_system;
