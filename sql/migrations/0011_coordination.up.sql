-- Coordination: who works on what, for whom and where. A mapping ties a session to a task (assignment), to the session that it works for
-- (delegation), or to a spoke and a workspace (placement). What placements have to do with spokes stands with those (0012_spokes).

CREATE TABLE mapping_status_transitions (
    from_status text        NOT NULL,
    to_status   text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT mapping_status_transitions_pkey PRIMARY KEY (from_status, to_status)
);
COMMENT ON TABLE mapping_status_transitions IS 'S14, X06: a mapping is active, and then over for good.';
INSERT INTO mapping_status_transitions (from_status, to_status) VALUES ('active', 'completed'), ('active', 'failed'), ('active', 'aborted');

-- S13: what a mapping's project is checked against.
ALTER TABLE sessions ADD CONSTRAINT sessions_project_id_id_key UNIQUE (org_id, project_id, id);
DROP INDEX sessions_project_id_idx;
COMMENT ON CONSTRAINT sessions_project_id_id_key ON sessions IS 'S13: what mappings refer to, so that a mapping''s project is its session''s. Also the index of listSessions by project.';

CREATE TABLE mappings (
    org_id            uuid        NOT NULL,
    id                uuid        NOT NULL DEFAULT hub_uuidv7(),
    kind              text        NOT NULL,
    project_id        uuid        NOT NULL,
    session_id        uuid        NOT NULL,
    parent_session_id uuid,
    task_id           uuid,
    spoke_id          uuid,
    workspace_id      uuid,
    status            text        NOT NULL DEFAULT 'active',
    reason            text        NOT NULL DEFAULT '',
    lease_seconds     integer,
    lease_expires_at  timestamptz,
    ended_at          timestamptz,
    metadata          jsonb       NOT NULL DEFAULT '{}',
    revision          integer     NOT NULL DEFAULT 1,
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT mappings_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT mappings_session_id_fkey FOREIGN KEY (org_id, project_id, session_id) REFERENCES sessions (org_id, project_id, id) ON DELETE CASCADE,
    CONSTRAINT mappings_parent_session_id_fkey FOREIGN KEY (org_id, project_id, parent_session_id) REFERENCES sessions (org_id, project_id, id) ON DELETE CASCADE,
    CONSTRAINT mappings_task_id_fkey FOREIGN KEY (org_id, project_id, task_id) REFERENCES tasks (org_id, project_id, id) ON DELETE CASCADE,
    CONSTRAINT mappings_workspace_id_fkey FOREIGN KEY (org_id, project_id, workspace_id) REFERENCES workspaces (org_id, project_id, id) ON DELETE SET NULL (workspace_id),
    CONSTRAINT mappings_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT mappings_kind_check CHECK (kind IN ('assignment', 'delegation', 'placement')),
    CONSTRAINT mappings_task_of_assignment_check CHECK ((kind = 'assignment') = (task_id IS NOT NULL)),
    CONSTRAINT mappings_lease_of_assignment_check CHECK ((kind = 'assignment') = (lease_seconds IS NOT NULL) AND (lease_seconds IS NULL) = (lease_expires_at IS NULL)),
    CONSTRAINT mappings_parent_of_delegation_check CHECK ((kind = 'delegation') = (parent_session_id IS NOT NULL)),
    CONSTRAINT mappings_spoke_of_placement_check CHECK (kind = 'placement' OR spoke_id IS NULL),
    CONSTRAINT mappings_workspace_of_placement_check CHECK (kind = 'placement' OR workspace_id IS NULL),
    CONSTRAINT mappings_not_own_parent_check CHECK (parent_session_id <> session_id),
    CONSTRAINT mappings_lease_length_check CHECK (lease_seconds BETWEEN 1 AND 86400),
    CONSTRAINT mappings_status_check CHECK (status IN ('active', 'completed', 'failed', 'aborted')),
    CONSTRAINT mappings_ended_has_time_check CHECK ((status = 'active') = (ended_at IS NULL)),
    CONSTRAINT mappings_reason_length_check CHECK (char_length(reason) <= 2000),
    CONSTRAINT mappings_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE mappings IS 'W20: ties a session to what its kind says. assignment: works on a task, under a lease. delegation: works for a parent session. placement: runs on a spoke, in a workspace.';
COMMENT ON COLUMN mappings.project_id IS 'S13: its session''s, its task''s, its parent session''s and its workspace''s. Immutable.';
COMMENT ON COLUMN mappings.spoke_id IS 'Where the session runs. NULL once the spoke is deleted, and for a placement in a workspace alone.';
COMMENT ON COLUMN mappings.workspace_id IS 'In what it works. NULL once the workspace is deleted, and for a placement on a spoke alone.';
COMMENT ON COLUMN mappings.reason IS 'Why it ended.';
COMMENT ON COLUMN mappings.lease_expires_at IS 'X04: when the task returns unless the holder says that it is still there.';
COMMENT ON COLUMN mappings.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN mappings.revision IS 'Counts changes of everything but the lease: the ETag.';
COMMENT ON CONSTRAINT mappings_session_id_fkey ON mappings IS 'C14, S13. Indexed by mappings_session_id_idx.';
COMMENT ON CONSTRAINT mappings_parent_session_id_fkey ON mappings IS 'C14, S13';
COMMENT ON CONSTRAINT mappings_task_id_fkey ON mappings IS 'C14, S13';
COMMENT ON CONSTRAINT mappings_workspace_id_fkey ON mappings IS 'C14, S13';
COMMENT ON CONSTRAINT mappings_task_of_assignment_check ON mappings IS 'W20: what an assignment has, and nothing else.';
COMMENT ON CONSTRAINT mappings_lease_of_assignment_check ON mappings IS 'W20: what an assignment has, and nothing else.';
COMMENT ON CONSTRAINT mappings_parent_of_delegation_check ON mappings IS 'W20: what a delegation has, and nothing else.';
COMMENT ON CONSTRAINT mappings_spoke_of_placement_check ON mappings IS 'W20: only a placement has one. That it has a place at all is mappings_placement_has_place''s: a later SET NULL must pass.';
COMMENT ON CONSTRAINT mappings_workspace_of_placement_check ON mappings IS 'W20: as mappings_spoke_of_placement_check.';
COMMENT ON CONSTRAINT mappings_id_version_check ON mappings IS 'C02';
COMMENT ON CONSTRAINT mappings_metadata_check ON mappings IS 'W01';

CREATE INDEX mappings_session_id_idx ON mappings (org_id, project_id, session_id, id);
CREATE INDEX mappings_parent_session_id_idx ON mappings (org_id, project_id, parent_session_id, id);
CREATE INDEX mappings_task_id_idx ON mappings (org_id, project_id, task_id, id);
CREATE INDEX mappings_spoke_id_idx ON mappings (org_id, spoke_id, id);
CREATE INDEX mappings_placed_idx ON mappings (org_id, spoke_id) WHERE status = 'active' AND spoke_id IS NOT NULL;
CREATE INDEX mappings_workspace_id_idx ON mappings (org_id, project_id, workspace_id, id);
CREATE INDEX mappings_project_id_idx ON mappings (org_id, project_id, id);
CREATE UNIQUE INDEX mappings_session_active_key ON mappings (org_id, session_id, kind) WHERE status = 'active';
CREATE UNIQUE INDEX mappings_task_active_key ON mappings (org_id, task_id) WHERE status = 'active';
CREATE INDEX mappings_lease_idx ON mappings (org_id, lease_expires_at) WHERE status = 'active';
COMMENT ON INDEX mappings_session_active_key IS 'W20: one at a time of each kind.';
COMMENT ON INDEX mappings_placed_idx IS 'W20: what runs on a spoke that disconnects.';
COMMENT ON INDEX mappings_task_active_key IS 'W11, W20: nobody steps on another one''s task.';

CREATE TRIGGER mappings_touch BEFORE UPDATE ON mappings
    FOR EACH ROW WHEN ((OLD.kind, OLD.session_id, OLD.parent_session_id, OLD.task_id, OLD.spoke_id, OLD.workspace_id, OLD.status, OLD.reason, OLD.lease_seconds, OLD.ended_at, OLD.metadata::text, OLD.revision, OLD.updated_at)
        IS DISTINCT FROM (NEW.kind, NEW.session_id, NEW.parent_session_id, NEW.task_id, NEW.spoke_id, NEW.workspace_id, NEW.status, NEW.reason, NEW.lease_seconds, NEW.ended_at, NEW.metadata::text, NEW.revision, NEW.updated_at))
    EXECUTE FUNCTION touch_row();
CREATE TRIGGER mappings_touch_lease BEFORE UPDATE ON mappings
    FOR EACH ROW WHEN (OLD.lease_expires_at IS DISTINCT FROM NEW.lease_expires_at) EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER mappings_identity_immutable BEFORE UPDATE ON mappings
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.kind, OLD.project_id, OLD.session_id, OLD.parent_session_id, OLD.task_id, OLD.created_at)
        IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.kind, NEW.project_id, NEW.session_id, NEW.parent_session_id, NEW.task_id, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A mapping''s organisation, id, kind, project, sessions, task and creation time');
COMMENT ON TRIGGER mappings_identity_immutable ON mappings IS 'S13, W20';


-- Placements (W20) -----------------------------------------------------------------------------------------------

CREATE FUNCTION refuse_placement_nowhere() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM public.raise_rule(TG_NAME, 'A placement is on a spoke, in a workspace, or both.');
END $$;
COMMENT ON FUNCTION refuse_placement_nowhere() IS 'W20: asked when it is made, and not later: its spoke and its workspace may be deleted.';
CREATE TRIGGER mappings_placement_has_place BEFORE INSERT ON mappings
    FOR EACH ROW WHEN (NEW.kind = 'placement' AND NEW.spoke_id IS NULL AND NEW.workspace_id IS NULL) EXECUTE FUNCTION refuse_placement_nowhere();
COMMENT ON TRIGGER mappings_placement_has_place ON mappings IS 'W20';

CREATE FUNCTION refuse_other_place() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- ON DELETE SET NULL comes after the target is gone: nobody else can bring that about.
    IF NEW.spoke_id IS DISTINCT FROM OLD.spoke_id AND (NEW.spoke_id IS NOT NULL OR EXISTS (SELECT FROM spokes s WHERE (s.org_id, s.id) = (OLD.org_id, OLD.spoke_id)))
       OR NEW.workspace_id IS DISTINCT FROM OLD.workspace_id AND (NEW.workspace_id IS NOT NULL OR EXISTS (SELECT FROM workspaces w WHERE (w.org_id, w.id) = (OLD.org_id, OLD.workspace_id))) THEN
        PERFORM raise_rule(TG_NAME, 'A placement keeps its spoke and its workspace.');
    END IF;
    IF NEW.spoke_id IS NULL AND NEW.workspace_id IS NULL AND NEW.status = 'active' THEN
        NEW.status := 'aborted';
        NEW.reason := 'Its place is gone.';
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION refuse_other_place() IS 'W20: a placement keeps its place for as long as there is one. One that loses its last target is aborted.';
-- Its name comes before those of the triggers that judge and note the status.
CREATE TRIGGER mappings_place_kept BEFORE UPDATE ON mappings
    FOR EACH ROW WHEN ((OLD.spoke_id, OLD.workspace_id) IS DISTINCT FROM (NEW.spoke_id, NEW.workspace_id)) EXECUTE FUNCTION refuse_other_place();
COMMENT ON TRIGGER mappings_place_kept ON mappings IS 'W20, C14';

CREATE FUNCTION check_mapping_status() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM mapping_status_transitions t WHERE (t.from_status, t.to_status) = (OLD.status, NEW.status)) THEN
        PERFORM raise_rule(TG_NAME, format('A mapping that is %s cannot become %s.', OLD.status, NEW.status));
    END IF;
    NEW.ended_at := clock_timestamp();
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_mapping_status() IS 'S14, X06: legal steps are rows of mapping_status_transitions.';
CREATE TRIGGER mappings_status_transition BEFORE UPDATE ON mappings
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION check_mapping_status();
COMMENT ON TRIGGER mappings_status_transition ON mappings IS 'S14, X06';


-- A task and its assignment move together (W11) ------------------------------------------------------------------

CREATE FUNCTION begin_mapping() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_session      sessions;
    v_task         tasks;
    v_spoke_status text;
BEGIN
    NEW.lease_expires_at := clock_timestamp() + make_interval(secs => NEW.lease_seconds);
    -- A session that ends meanwhile waits for us, and then ends this mapping too.
    SELECT * INTO v_session FROM sessions s WHERE (s.org_id, s.id) = (NEW.org_id, NEW.session_id) FOR SHARE;
    IF v_session.run_state = 'ended' OR v_session.archived_at IS NOT NULL OR v_session.deleted_at IS NOT NULL THEN
        PERFORM raise_rule('mappings_session_over', 'The session is over.');
    END IF;
    IF NEW.spoke_id IS NOT NULL THEN
        -- A spoke that disconnects meanwhile waits for us, and then ends this mapping too.
        SELECT s.status INTO v_spoke_status FROM spokes s WHERE (s.org_id, s.id) = (NEW.org_id, NEW.spoke_id) FOR SHARE;
        IF v_spoke_status = 'disconnected' THEN
            PERFORM raise_rule('mappings_spoke_disconnected', 'The spoke is disconnected: nothing runs there.');
        END IF;
    END IF;
    IF NEW.kind = 'assignment' THEN
        SELECT * INTO v_task FROM tasks t WHERE (t.org_id, t.project_id, t.id) = (NEW.org_id, NEW.project_id, NEW.task_id) FOR NO KEY UPDATE;
        CASE
            WHEN v_task.id IS NULL THEN NULL; -- the foreign key says so
            WHEN v_task.status = 'in-progress' THEN PERFORM raise_rule('task_already_claimed', 'Somebody is at work on the task.');
            WHEN v_task.status <> 'pending' OR v_task.archived_at IS NOT NULL THEN PERFORM raise_rule('task_not_pending', 'The task is not there to be claimed.');
            WHEN v_task.unmet_count > 0 THEN PERFORM raise_rule('task_not_ready', 'The task waits for others.');
            ELSE NULL;
        END CASE;
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION begin_mapping() IS 'W11, X04, W20: only a ready task is claimed, by a session that is not over; and no session is placed on a spoke that is gone. hub_system''s, because it locks rows that its caller could not lock.';
CREATE TRIGGER mappings_begin BEFORE INSERT ON mappings
    FOR EACH ROW WHEN (NEW.status = 'active') EXECUTE FUNCTION begin_mapping();

CREATE FUNCTION move_task_with_mapping() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_mapping mappings := coalesce(NEW, OLD);
    v_status  task_status;
BEGIN
    IF TG_OP = 'INSERT' THEN
        v_status := 'in-progress';
    ELSIF TG_OP = 'DELETE' THEN
        v_status := 'pending';
        v_mapping.reason := 'The assignment was deleted.';
    ELSE
        v_status := CASE NEW.status WHEN 'completed' THEN 'completed' WHEN 'failed' THEN 'failed' ELSE 'pending' END;
    END IF;
    PERFORM set_config('hub.task_reason', v_mapping.reason, true), set_config('hub.task_mapping_id', v_mapping.id::text, true), set_config('hub.task_session_id', v_mapping.session_id::text, true);
    -- block_task has moved it already.
    UPDATE tasks t SET status = v_status WHERE (t.org_id, t.id) = (v_mapping.org_id, v_mapping.task_id) AND (t.status = 'in-progress') = (TG_OP <> 'INSERT');
    PERFORM set_config('hub.task_reason', '', true), set_config('hub.task_mapping_id', '', true), set_config('hub.task_session_id', '', true);
    RETURN NULL;
END $$;
COMMENT ON FUNCTION move_task_with_mapping() IS 'W11: claimed: in-progress; completed: completed; failed: failed; aborted or deleted: pending again.';
CREATE TRIGGER mappings_task_claimed AFTER INSERT ON mappings
    FOR EACH ROW WHEN (NEW.kind = 'assignment' AND NEW.status = 'active') EXECUTE FUNCTION move_task_with_mapping();
CREATE TRIGGER mappings_task_moved AFTER UPDATE ON mappings
    FOR EACH ROW WHEN (NEW.kind = 'assignment' AND OLD.status = 'active' AND NEW.status <> 'active') EXECUTE FUNCTION move_task_with_mapping();
CREATE TRIGGER mappings_task_returned AFTER DELETE ON mappings
    FOR EACH ROW WHEN (OLD.kind = 'assignment' AND OLD.status = 'active') EXECUTE FUNCTION move_task_with_mapping();

CREATE FUNCTION end_mappings_of_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF TG_TABLE_NAME = 'sessions' THEN
        UPDATE mappings m SET status = 'aborted', reason = 'The session is over.'
        WHERE (m.org_id, m.project_id) = (NEW.org_id, NEW.project_id) AND NEW.id IN (m.session_id, m.parent_session_id) AND m.status = 'active';
    ELSE
        UPDATE mappings m SET status = 'aborted', reason = 'The task was put aside.'
        WHERE (m.org_id, m.task_id) = (NEW.org_id, NEW.id) AND m.status = 'active';
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION end_mappings_of_row() IS 'W11: a session that ends, is archived or is marked as deleted, and a task that is archived, end what they are mapped to.';
CREATE TRIGGER sessions_end_mappings AFTER UPDATE ON sessions
    FOR EACH ROW WHEN ((NEW.run_state = 'ended' OR NEW.archived_at IS NOT NULL OR NEW.deleted_at IS NOT NULL)
                       AND NOT (OLD.run_state = 'ended' OR OLD.archived_at IS NOT NULL OR OLD.deleted_at IS NOT NULL))
    EXECUTE FUNCTION end_mappings_of_row();
CREATE TRIGGER tasks_end_mappings AFTER UPDATE ON tasks
    FOR EACH ROW WHEN (NEW.archived_at IS NOT NULL AND OLD.archived_at IS NULL AND NEW.status = 'in-progress') EXECUTE FUNCTION end_mappings_of_row();

CREATE FUNCTION check_task_is_assigned() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_org_id  uuid := CASE TG_OP WHEN 'DELETE' THEN OLD.org_id ELSE NEW.org_id END;
    v_task_id uuid;
    v_status  task_status;
BEGIN
    IF TG_TABLE_NAME = 'tasks' THEN
        v_task_id := NEW.id;
    ELSE
        v_task_id := CASE TG_OP WHEN 'DELETE' THEN OLD.task_id ELSE NEW.task_id END;
    END IF;
    SELECT t.status INTO v_status FROM tasks t WHERE (t.org_id, t.id) = (v_org_id, v_task_id);
    IF FOUND AND (v_status = 'in-progress') <> EXISTS (SELECT FROM mappings m WHERE (m.org_id, m.task_id) = (v_org_id, v_task_id) AND m.status = 'active') THEN
        PERFORM raise_rule(TG_NAME, 'A task is in progress exactly while it has an active assignment.');
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION check_task_is_assigned() IS 'W11: the last word, at the end of the transaction.';
CREATE CONSTRAINT TRIGGER tasks_in_progress_is_assigned AFTER UPDATE ON tasks DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION check_task_is_assigned();
COMMENT ON TRIGGER tasks_in_progress_is_assigned ON tasks IS 'W11';
CREATE CONSTRAINT TRIGGER mappings_task_status_agrees AFTER INSERT OR UPDATE OR DELETE ON mappings DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION check_task_is_assigned();
COMMENT ON TRIGGER mappings_task_status_agrees ON mappings IS 'W11';

CREATE TRIGGER mappings_record AFTER INSERT ON mappings FOR EACH ROW EXECUTE FUNCTION record_row_event('mapping');
CREATE TRIGGER mappings_record_change AFTER UPDATE ON mappings
    FOR EACH ROW WHEN (OLD.revision IS DISTINCT FROM NEW.revision) EXECUTE FUNCTION record_row_event('mapping');
CREATE TRIGGER mappings_record_deleted AFTER DELETE ON mappings FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION record_row_event('mapping');
COMMENT ON TRIGGER mappings_record_deleted ON mappings IS 'X05: what goes with its session or task is not told of.';


-- What readers see -----------------------------------------------------------------------------------------------

CREATE VIEW mapping_details WITH (security_invoker = true) AS
    SELECT m.org_id, m.id, m.kind, m.project_id, m.session_id, m.parent_session_id, m.task_id, t.slug AS task_slug, t.name AS task_name,
           m.spoke_id, m.workspace_id, m.status, m.reason,
           m.lease_seconds, m.lease_expires_at, m.ended_at, m.metadata, m.revision, m.created_at, m.updated_at
    FROM mappings m LEFT JOIN tasks t ON (t.org_id, t.id) = (m.org_id, m.task_id);
COMMENT ON VIEW mapping_details IS 'C06: mappings with their task''s names as they are now.';

CREATE VIEW task_details WITH (security_invoker = true) AS
    SELECT t.*, m.id AS mapping_id, m.session_id, m.lease_seconds, m.lease_expires_at, m.created_at AS claimed_at,
           ARRAY(SELECT p.slug FROM task_dependencies d JOIN tasks p ON (p.org_id, p.id) = (d.org_id, d.depends_on_task_id)
                 WHERE (d.org_id, d.project_id, d.dependent_task_id) = (t.org_id, t.project_id, t.id) ORDER BY p.slug)::text[] AS depends_on
    FROM tasks t LEFT JOIN mappings m ON (m.org_id, m.task_id) = (t.org_id, t.id) AND m.status = 'active';
COMMENT ON VIEW task_details IS 'Tasks with their active assignment and what they depend on.';

CREATE FUNCTION create_mapping(p_kind text, p_session_id uuid, p_parent_session_id uuid, p_spoke_id uuid, p_workspace_id uuid, p_metadata jsonb) RETURNS SETOF mapping_details
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_id uuid;
BEGIN
    INSERT INTO mappings (org_id, kind, project_id, session_id, parent_session_id, spoke_id, workspace_id, metadata)
    SELECT s.org_id, p_kind, s.project_id, s.id, p_parent_session_id, p_spoke_id, p_workspace_id, p_metadata FROM sessions s WHERE (s.org_id, s.id) = (current_org_id(), p_session_id)
    RETURNING mappings.id INTO v_id;
    RETURN QUERY SELECT * FROM mapping_details d WHERE (d.org_id, d.id) = (current_org_id(), v_id);
END $$;
COMMENT ON FUNCTION create_mapping(text, uuid, uuid, uuid, uuid, jsonb) IS 'W20: a delegation or a placement, in its session''s project, with its caller''s rights. No row where there is no such session.';

CREATE FUNCTION end_mapping(p_id uuid, p_status text, p_reason text) RETURNS SETOF mapping_details
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- First, for the end of a task changes the counts of others.
    PERFORM FROM projects p WHERE (p.org_id, p.id) = (SELECT m.org_id, m.project_id FROM mappings m WHERE (m.org_id, m.id) = (current_org_id(), p_id)) FOR NO KEY UPDATE;
    UPDATE mappings m SET status = p_status, reason = p_reason WHERE (m.org_id, m.id) = (current_org_id(), p_id);
    RETURN QUERY SELECT * FROM mapping_details d WHERE (d.org_id, d.id) = (current_org_id(), p_id);
END $$;
COMMENT ON FUNCTION end_mapping(uuid, text, text) IS 'S14: ends a mapping, with its caller''s rights. No row where there is none.';


-- Claiming (X04) -------------------------------------------------------------------------------------------------
-- With their caller's rights: row-level security and keys that are limited to projects bind them. Each returns the task as it is then; no row where there is none.
-- Lock order: project, session, spoke, mapping, task.

CREATE FUNCTION return_expired_in_project(p_project_id uuid) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, public, pg_temp AS $$
    UPDATE mappings u SET status = 'aborted', reason = 'The lease expired.'
    WHERE (u.org_id, u.id) IN (
        SELECT m.org_id, m.id FROM mappings m
        WHERE m.org_id = current_org_id() AND m.project_id = p_project_id AND m.status = 'active' AND m.lease_expires_at < clock_timestamp()
        LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED)
$$;
COMMENT ON FUNCTION return_expired_in_project(uuid) IS 'X04: what a silent holder has lost, before somebody looks for work: nobody waits for the sweeper.';

CREATE FUNCTION claim_task(p_task_id uuid, p_session_id uuid, p_lease_seconds integer) RETURNS SETOF task_details
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_project_id uuid := (SELECT t.project_id FROM tasks t WHERE (t.org_id, t.id) = (current_org_id(), p_task_id));
BEGIN
    IF v_project_id IS NULL THEN
        RETURN;
    END IF;
    PERFORM return_expired_in_project(v_project_id);
    INSERT INTO mappings (org_id, kind, project_id, session_id, task_id, lease_seconds) VALUES (current_org_id(), 'assignment', v_project_id, p_session_id, p_task_id, p_lease_seconds);
    RETURN QUERY SELECT * FROM task_details d WHERE (d.org_id, d.id) = (current_org_id(), p_task_id);
END $$;
COMMENT ON FUNCTION claim_task(uuid, uuid, integer) IS 'X04: makes a session the one that works on a task.';

CREATE FUNCTION claim_next_task(p_project_id uuid, p_session_id uuid, p_lease_seconds integer, p_path_prefix text, p_tags text[], p_level task_level, p_max_risk task_risk)
RETURNS SETOF task_details
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_task_id uuid;
BEGIN
    PERFORM return_expired_in_project(p_project_id);
    SELECT t.id INTO v_task_id FROM tasks t
    WHERE t.org_id = current_org_id() AND t.project_id = p_project_id AND t.status = 'pending' AND t.unmet_count = 0 AND t.archived_at IS NULL
      AND (p_path_prefix IS NULL OR t.path ^@ p_path_prefix) AND t.tags @> p_tags AND (p_level IS NULL OR t.level = p_level) AND (p_max_risk IS NULL OR coalesce(t.risk, 'medium') <= p_max_risk)
    ORDER BY t.priority_rank DESC, t.downstream_count DESC, t.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF v_task_id IS NULL THEN
        -- What is locked is mostly being claimed, but may only be noted on: the last look waits.
        SELECT t.id INTO v_task_id FROM tasks t
        WHERE t.org_id = current_org_id() AND t.project_id = p_project_id AND t.status = 'pending' AND t.unmet_count = 0 AND t.archived_at IS NULL
          AND (p_path_prefix IS NULL OR t.path ^@ p_path_prefix) AND t.tags @> p_tags AND (p_level IS NULL OR t.level = p_level) AND (p_max_risk IS NULL OR coalesce(t.risk, 'medium') <= p_max_risk)
        ORDER BY t.priority_rank DESC, t.downstream_count DESC, t.id LIMIT 1 FOR NO KEY UPDATE;
    END IF;
    IF v_task_id IS NOT NULL THEN
        INSERT INTO mappings (org_id, kind, project_id, session_id, task_id, lease_seconds) VALUES (current_org_id(), 'assignment', p_project_id, p_session_id, v_task_id, p_lease_seconds);
        RETURN QUERY SELECT * FROM task_details d WHERE (d.org_id, d.id) = (current_org_id(), v_task_id);
    END IF;
END $$;
COMMENT ON FUNCTION claim_next_task(uuid, uuid, integer, text, text[], task_level, task_risk) IS
    'X04: the ready task of the highest priority, among equals the one that most others wait for. Risk that is not assessed counts as medium.';

CREATE FUNCTION end_claim(p_task_id uuid, p_mapping_id uuid, p_status text, p_task_status task_status, p_reason text) RETURNS SETOF task_details
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_project_id uuid := (SELECT t.project_id FROM tasks t WHERE (t.org_id, t.id) = (current_org_id(), p_task_id));
BEGIN
    IF v_project_id IS NULL THEN
        RETURN;
    END IF;
    IF p_status <> 'aborted' THEN
        PERFORM FROM projects p WHERE (p.org_id, p.id) = (current_org_id(), v_project_id) FOR NO KEY UPDATE; -- first, for others' counts change
    END IF;
    PERFORM FROM mappings m WHERE (m.org_id, m.id, m.task_id) = (current_org_id(), p_mapping_id, p_task_id) AND m.status = 'active' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM raise_rule('task_not_held', 'The task is not, or no longer, held by this claim.');
    END IF;
    IF p_task_status = 'blocked' THEN
        PERFORM move_task(p_task_id, 'blocked', p_reason);
    END IF;
    UPDATE mappings m SET status = p_status, reason = p_reason WHERE (m.org_id, m.id) = (current_org_id(), p_mapping_id);
    RETURN QUERY SELECT * FROM task_details d WHERE (d.org_id, d.id) = (current_org_id(), p_task_id);
END $$;
COMMENT ON FUNCTION end_claim(uuid, uuid, text, task_status, text) IS
    'W11: ends an assignment, and with it moves the task. The mapping''s id is the fence: whoever lost the lease cannot end the next one''s work.';

CREATE FUNCTION extend_claim(p_task_id uuid, p_mapping_id uuid) RETURNS SETOF task_details
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM tasks t WHERE (t.org_id, t.id) = (current_org_id(), p_task_id)) THEN
        RETURN;
    END IF;
    UPDATE mappings m SET lease_expires_at = clock_timestamp() + make_interval(secs => m.lease_seconds)
    WHERE (m.org_id, m.id, m.task_id) = (current_org_id(), p_mapping_id, p_task_id) AND m.status = 'active';
    IF NOT FOUND THEN
        PERFORM raise_rule('task_not_held', 'The task is not, or no longer, held by this claim.');
    END IF;
    RETURN QUERY SELECT * FROM task_details d WHERE (d.org_id, d.id) = (current_org_id(), p_task_id);
END $$;
COMMENT ON FUNCTION extend_claim(uuid, uuid) IS 'X04: the holder is still there. A lease that ran out, but that nobody took back yet, goes on.';

CREATE FUNCTION move_task(p_task_id uuid, p_status task_status, p_reason text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_task tasks;
BEGIN
    SELECT * INTO v_task FROM tasks t WHERE (t.org_id, t.id) = (current_org_id(), p_task_id);
    IF NOT FOUND OR NOT coalesce(v_task.project_id = ANY (current_project_ids()), true) THEN
        RETURN NULL;
    END IF;
    IF p_status NOT IN ('pending', 'blocked') THEN
        PERFORM raise_rule('task_not_held', 'Only who holds a task completes or fails it.');
    END IF;
    PERFORM FROM projects p WHERE (p.org_id, p.id) = (v_task.org_id, v_task.project_id) FOR NO KEY UPDATE;
    PERFORM set_config('hub.task_reason', p_reason, true);
    UPDATE tasks t SET status = p_status WHERE (t.org_id, t.id) = (v_task.org_id, p_task_id);
    PERFORM set_config('hub.task_reason', '', true);
    RETURN p_task_id;
END $$;
COMMENT ON FUNCTION move_task(uuid, task_status, text) IS 'Blocks, unblocks or reopens a task of the caller''s organisation. NULL where there is none. A task in progress stays so unless its assignment ends in the same transaction (W11).';

CREATE FUNCTION set_task_aside(p_task_id uuid, p_from task_status[], p_to task_status, p_reason text) RETURNS SETOF task_details
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_project_id uuid := (SELECT t.project_id FROM tasks t WHERE (t.org_id, t.id) = (current_org_id(), p_task_id));
    v_status     task_status;
BEGIN
    IF v_project_id IS NULL THEN
        RETURN;
    END IF;
    PERFORM FROM projects p WHERE (p.org_id, p.id) = (current_org_id(), v_project_id) FOR NO KEY UPDATE;
    SELECT t.status INTO v_status FROM tasks t WHERE (t.org_id, t.id) = (current_org_id(), p_task_id) FOR NO KEY UPDATE;
    IF NOT v_status = ANY (p_from) THEN
        PERFORM raise_rule('task_status_stands_against', format('A task that is %s cannot become %s in this way.', v_status, p_to));
    END IF;
    PERFORM move_task(p_task_id, p_to, p_reason);
    RETURN QUERY SELECT * FROM task_details d WHERE (d.org_id, d.id) = (current_org_id(), p_task_id);
END $$;
COMMENT ON FUNCTION set_task_aside(uuid, task_status[], task_status, text) IS 'Blocks, unblocks or reopens a task that nobody works on.';

CREATE FUNCTION return_expired_tasks(p_rows integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_count bigint;
BEGIN
    PERFORM set_config('hub.actor_source', 'worker', true);
    WITH due AS (
        SELECT d.org_id, d.id FROM organizations o, LATERAL (
            SELECT m.org_id, m.id FROM mappings m WHERE m.org_id = o.id AND m.status = 'active' AND m.lease_expires_at < clock_timestamp()
            LIMIT p_rows FOR NO KEY UPDATE SKIP LOCKED) d
        LIMIT p_rows
    )
    UPDATE mappings m SET status = 'aborted', reason = 'The lease expired.' FROM due d WHERE (m.org_id, m.id) = (d.org_id, d.id);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$;
COMMENT ON FUNCTION return_expired_tasks(integer) IS 'X04: takes up to so many tasks back whose holders have gone silent. Returns how many.';


-- Who may see and do what ----------------------------------------------------------------------------------------

ALTER TABLE mappings ENABLE ROW LEVEL SECURITY;
ALTER TABLE mappings FORCE ROW LEVEL SECURITY;
CREATE POLICY mappings_tenant ON mappings TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY mappings_limited ON mappings AS RESTRICTIVE TO hub_app
    USING ((SELECT current_project_ids()) IS NULL OR project_id = ANY ((SELECT current_project_ids())::uuid[]));
CREATE POLICY mappings_bookkeeping ON mappings TO hub_system USING (true);

GRANT SELECT ON mapping_status_transitions TO hub_app, hub_system;
GRANT SELECT ON mapping_details, task_details TO hub_app;
GRANT SELECT, DELETE ON mappings TO hub_app;
GRANT INSERT (org_id, kind, project_id, session_id, parent_session_id, task_id, spoke_id, workspace_id, lease_seconds, metadata), UPDATE (status, reason, lease_expires_at, metadata) ON mappings TO hub_app;
GRANT SELECT, DELETE, UPDATE (status, reason, lease_expires_at, ended_at) ON mappings TO hub_system;

REVOKE ALL ON FUNCTION begin_mapping(), move_task_with_mapping(), end_mappings_of_row(), check_task_is_assigned(), move_task(uuid, task_status, text), return_expired_tasks(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION move_task(uuid, task_status, text), return_expired_tasks(integer) TO hub_app;
GRANT CREATE ON SCHEMA public TO hub_system;
ALTER FUNCTION begin_mapping() OWNER TO hub_system;
ALTER FUNCTION move_task_with_mapping() OWNER TO hub_system;
ALTER FUNCTION end_mappings_of_row() OWNER TO hub_system;
ALTER FUNCTION check_task_is_assigned() OWNER TO hub_system;
ALTER FUNCTION move_task(uuid, task_status, text) OWNER TO hub_system;
ALTER FUNCTION return_expired_tasks(integer) OWNER TO hub_system;
REVOKE CREATE ON SCHEMA public FROM hub_system;
