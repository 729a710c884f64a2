package sql_test

import (
	"fmt"
	"sync"
	"testing"
)

const spokesFixture = `
INSERT INTO spokes (org_id, id, name, account_id, lease_expires_at) VALUES
	(@org, @spoke, 'builder', @owner, now() + interval '1 hour'), (@org, @idle_spoke, 'idle', @member, now() + interval '1 hour'),
	(@org, @gone_spoke, 'gone', NULL, now()), (@other_org, @other_spoke, 'builder', @other_owner, now() + interval '1 hour');
UPDATE spokes SET status = 'disconnected', disconnected_at = now() WHERE id = @gone_spoke;
INSERT INTO operation_specs (org_id, id, spoke_id, namespace, name, kind) VALUES
	(@org, @spec, @spoke, 'fs', 'read', 'query'), (@other_org, @other_spec, @other_spoke, 'fs', 'read', 'query');`

const newSpec = "INSERT INTO operation_specs (org_id, spoke_id, namespace, name, kind) VALUES (%s)"

var (
	notScopes = []string{"'{x}'", "'{projects:all}'", "'{Projects:read}'", "'{platform:read}'", "'{*}'", "'{platform:*}'", "'{\"projects:read sessions:read\"}'", "'{NULL}'", "array_fill('a:read'::text, '{51}')"}
	goodScope = []string{"'{}'", "'{projects:read}'", "'{projects:read,anything:admin}'", "array_fill('a:read'::text, '{50}')"}
	asAccount = "SELECT set_config('hub.account_id', @%s, true), set_config('hub.membership_level', '%s', true)"
)

var spokesRules = []ruleCase{
	{rule: "spoke_statuses_pkey", hub: true, sql: "INSERT INTO spoke_statuses (status, description) VALUES (??, 'x')", bad: []string{"'connected'"}, good: []string{"'new'"}},
	{rule: "spoke_status_transitions_pkey", hub: true, sql: "INSERT INTO spoke_status_transitions (from_status, to_status) VALUES ('connected', ??)", bad: []string{"'reconnecting'"}, good: []string{"'connected'"}},
	{rule: "spoke_status_transitions_from_status_fkey", hub: true, sql: "INSERT INTO spoke_status_transitions (from_status, to_status) VALUES (??, 'disconnected')", bad: []string{"'new'"}, good: []string{"'disconnected'"}},
	{rule: "spoke_status_transitions_to_status_fkey", hub: true, sql: "INSERT INTO spoke_status_transitions (from_status, to_status) VALUES ('connected', ??)", bad: []string{"'new'"}, good: []string{"'connected'"}},
	{
		rule: "spoke_status_transitions_from_status_fkey_in_use", hub: true,
		before: "INSERT INTO spoke_statuses (status, description) VALUES ('new', 'x'); DELETE FROM spoke_status_transitions WHERE to_status = 'reconnecting'",
		sql:    "DELETE FROM spoke_statuses WHERE status = ??", bad: []string{"'reconnecting'"}, good: []string{"'new'"},
	},
	{
		rule: "spoke_status_transitions_to_status_fkey_in_use", hub: true,
		before: "INSERT INTO spoke_statuses (status, description) VALUES ('new', 'x'); DELETE FROM spoke_status_transitions WHERE from_status = 'reconnecting'",
		sql:    "DELETE FROM spoke_statuses WHERE status = ??", bad: []string{"'reconnecting'"}, good: []string{"'new'"},
	},
	{rule: "reserved_namespaces_pkey", hub: true, sql: "INSERT INTO reserved_namespaces (namespace) VALUES (??)", bad: []string{"'hub'"}, good: []string{"'hubs'"}},

	{rule: "spokes_tenant", sql: "INSERT INTO spokes (org_id, name, lease_expires_at) VALUES (??, 'x', now())", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{rule: "spokes_pkey", hub: true, sql: "INSERT INTO spokes (org_id, id, name, lease_expires_at) VALUES (@org, ??, 'x', now())", bad: []string{"@spoke"}, good: []string{"@new", "@other_spoke"}},
	{rule: "spokes_id_version_check", hub: true, sql: "INSERT INTO spokes (org_id, id, name, lease_expires_at) VALUES (@org, ??, 'x', now())", bad: notUUIDv7, good: uuidv7},
	{rule: "spokes_name_key", sql: "INSERT INTO spokes (org_id, name, lease_expires_at) VALUES (@org, ??, now())", bad: []string{"'builder'"}, good: []string{"'Builder'"}},
	{rule: "spokes_org_id_fkey", hub: true, sql: "INSERT INTO spokes (org_id, name, lease_expires_at) VALUES (??, 'x', now())", bad: []string{"@new"}, good: []string{"@org"}},
	{
		rule: "spokes_org_id_fkey_in_use", hub: true, before: "DELETE FROM calls; DELETE FROM idempotency_keys; DELETE FROM sessions; DELETE FROM clients; DELETE FROM tasks; DELETE FROM projects; DELETE FROM roles; DELETE FROM spokes WHERE org_id = @other_org",
		sql: "DELETE FROM organizations WHERE id = ??", bad: []string{"@org"}, good: []string{"@other_org"},
	},
	{rule: "spokes_account_id_fkey", sql: "INSERT INTO spokes (org_id, name, lease_expires_at, account_id) VALUES (@org, 'x', now(), ??)", bad: []string{"@other_owner", "@nobody", "@new"}, good: []string{"@member", "NULL"}},
	{rule: "spokes_status_fkey", sql: "UPDATE spokes SET status = ?? WHERE id = @spoke", bad: []string{"'gone'", "''"}, good: []string{"'reconnecting'", "'connected'"}},
	{
		rule: "spokes_status_fkey_in_use", hub: true, before: "DELETE FROM spoke_status_transitions; INSERT INTO spoke_statuses (status, description) VALUES ('new', 'x')",
		sql: "DELETE FROM spoke_statuses WHERE status = ??", bad: []string{"'connected'"}, good: []string{"'new'"},
	},
	{
		rule: "spokes_name_shape_check", sql: "INSERT INTO spokes (org_id, name, lease_expires_at) VALUES (@org, ??, now())",
		bad: []string{"''", "'.a'", "'-a'", "'a b'", "'a/b'", "'ä'", "E'a\\n'", "repeat('a', 101)"}, good: []string{"'a'", "'A.b_c-1'", "repeat('a', 100)"},
	},
	{rule: "spokes_version_length_check", sql: "UPDATE spokes SET version = ?? WHERE id = @spoke", bad: []string{"repeat('ä', 101)"}, good: []string{"''", "repeat('ä', 100)"}},
	{rule: "spokes_epoch_check", hub: true, sql: "INSERT INTO spokes (org_id, name, lease_expires_at, epoch) VALUES (@org, 'x', now(), ??)", bad: []string{"0", "-1"}, good: []string{"1"}},
	{rule: "spokes_lease_seconds_check", sql: "UPDATE spokes SET lease_seconds = ?? WHERE id = @spoke", bad: []string{"0", "3601"}, good: []string{"1", "3600"}},
	{rule: "spokes_grace_seconds_check", sql: "UPDATE spokes SET grace_seconds = ?? WHERE id = @spoke", bad: []string{"-1", "86401"}, good: []string{"0", "86400"}},
	{rule: "spokes_disconnected_has_time_check", sql: "UPDATE spokes SET ?? WHERE id = @spoke", bad: []string{"status = 'disconnected'", "disconnected_at = now()"}, good: []string{"status = 'disconnected', disconnected_at = now()", "status = 'reconnecting'"}},
	{rule: "spokes_data_object_check", sql: "UPDATE spokes SET data = ?? WHERE id = @spoke", bad: notObjects, good: objects},
	{rule: "spokes_metadata_check", sql: "UPDATE spokes SET metadata = ?? WHERE id = @spoke", bad: notMetadata, good: metadata},
	{rule: "spokes_by_their_account", state: "42501", before: fmt.Sprintf(asAccount, "member", "member"), sql: "UPDATE spokes SET version = 'x' WHERE id = ??", bad: []string{"@spoke", "@gone_spoke"}, good: []string{"@idle_spoke"}},
	{
		rule: "spokes_status_transition", before: "UPDATE spokes SET epoch = 2 WHERE id = @gone_spoke",
		sql: "UPDATE spokes SET status = 'reconnecting', disconnected_at = NULL WHERE id = ??", bad: []string{"@gone_spoke"}, good: []string{"@spoke"},
	},
	{
		rule: "spokes_epoch_rises", before: "UPDATE spokes SET epoch = 5 WHERE id = @spoke", sql: "UPDATE spokes SET ??", hub: true,
		bad:  []string{"epoch = 4 WHERE id = @spoke", "status = 'connected', disconnected_at = NULL WHERE id = @gone_spoke"},
		good: []string{"epoch = 6 WHERE id = @spoke", "status = 'connected', disconnected_at = NULL, epoch = 2 WHERE id = @gone_spoke", "status = 'reconnecting' WHERE id = @spoke"},
	},
	{
		rule: "spokes_identity_immutable", hub: true, sql: "UPDATE spokes SET ?? WHERE id = @spoke",
		bad: []string{"id = @new", "org_id = @other_org", "name = 'x'", "created_at = created_at - interval '1 hour'"}, good: []string{"version = 'x'", "name = 'builder'"},
	},
	{rule: "spoke_of_another_account", state: "42501", before: fmt.Sprintf(asAccount, "member", "member"), sql: "SELECT FROM hold_spoke(??, 1)", bad: []string{"@spoke"}, good: []string{"@idle_spoke"}},
	{rule: "spoke_epoch_stale", before: "UPDATE spokes SET epoch = 5 WHERE id = @spoke", sql: "SELECT FROM hold_spoke(@spoke, ??)", bad: []string{"4", "6", "1"}, good: []string{"5"}},

	{rule: "operation_specs_tenant", sql: fmt.Sprintf(newSpec, "??, 'x', 'y', 'query'"), bad: []string{"@other_org, @other_spoke"}, good: []string{"@org, @spoke"}},
	{
		rule: "operation_specs_limited", before: fmt.Sprintf(asAccount, "member", "member"), sql: "INSERT INTO operation_specs (org_id, spoke_id, namespace, name, kind, visibility) VALUES (@org, ??, 'x', 'y', 'query', 'account')",
		bad: []string{"@spoke"}, good: []string{"@idle_spoke"},
	},
	{rule: "operation_specs_pkey", hub: true, sql: "INSERT INTO operation_specs (org_id, spoke_id, namespace, name, kind, id) VALUES (@org, @spoke, 'x', 'y', 'query', ??)", bad: []string{"@spec"}, good: []string{"@new", "@other_spec"}},
	{rule: "operation_specs_id_version_check", hub: true, sql: "INSERT INTO operation_specs (org_id, spoke_id, namespace, name, kind, id) VALUES (@org, @spoke, 'x', 'y', 'query', ??)", bad: notUUIDv7, good: uuidv7},
	{
		// What the other key refuses already, since a qualified name is made of its columns.
		rule: "operation_specs_qualified_name_key", hub: true, before: "ALTER TABLE operation_specs DROP CONSTRAINT operation_specs_spoke_id_name_key",
		sql: fmt.Sprintf(newSpec, "@org, ??, 'query'"), bad: []string{"@spoke, 'fs', 'read'"}, good: []string{"@idle_spoke, 'fs', 'read'", "@spoke, 'fs', 'Read'", "@spoke, 'fs2', 'read'"},
	},
	{
		rule: "operation_specs_spoke_id_name_key", hub: true, before: "ALTER TABLE operation_specs DROP CONSTRAINT operation_specs_qualified_name_key",
		sql: fmt.Sprintf(newSpec, "@org, ??, 'query'"), bad: []string{"@spoke, 'fs', 'read'"}, good: []string{"@idle_spoke, 'fs', 'read'", "@spoke, 'fs', 'Read'", "@spoke, 'fs2', 'read'"},
	},
	{rule: "operation_specs_spoke_id_fkey", sql: fmt.Sprintf(newSpec, "@org, ??, 'x', 'y', 'query'"), bad: []string{"@new", "@other_spoke"}, good: []string{"@spoke"}},
	{
		rule: "operation_specs_namespace_shape_check", sql: fmt.Sprintf(newSpec, "@org, @spoke, ??, 'y', 'query'"),
		bad: []string{"''", "'a.b'", "'a b'", "'ä'", "E'a\\n'", "repeat('a', 41)"}, good: []string{"'a'", "'A-1_b'", "repeat('a', 40)"},
	},
	{
		rule: "operation_specs_name_shape_check", sql: fmt.Sprintf(newSpec, "@org, @spoke, 'x', ??, 'query'"),
		bad: []string{"''", "'.'", "'a.'", "'.a'", "'a..b'", "'a b'", "'a/b'", "E'a\\n'", "@spoke", "upper(@spoke)", "@spoke || '.a'"}, good: []string{"'a'", "'A-1_b.c.d'", "'a' || @spoke"},
	},
	{rule: "operation_specs_qualified_name_length_check", sql: fmt.Sprintf(newSpec, "@org, @spoke, repeat('a', 40), ??, 'query'"), bad: []string{"repeat('a', 51)"}, good: []string{"repeat('a', 50)"}},
	{rule: "operation_specs_kind_check", sql: fmt.Sprintf(newSpec, "@org, @spoke, 'x', 'y', ??"), bad: []string{"''", "'tool'"}, good: []string{"'query'", "'mutation'", "'subscription'"}},
	{rule: "operation_specs_version_length_check", sql: "UPDATE operation_specs SET version = ?? WHERE id = @spec", bad: []string{"''", "repeat('ä', 101)"}, good: []string{"'1'", "repeat('ä', 100)"}},
	{rule: "operation_specs_title_length_check", sql: "UPDATE operation_specs SET title = ?? WHERE id = @spec", bad: []string{"repeat('ä', 201)"}, good: []string{"''", "repeat('ä', 200)"}},
	{rule: "operation_specs_description_length_check", sql: "UPDATE operation_specs SET description = ?? WHERE id = @spec", bad: []string{"repeat('ä', 10001)"}, good: []string{"''", "repeat('ä', 10000)"}},
	{rule: "operation_specs_input_schema_object_check", sql: "UPDATE operation_specs SET input_schema = ?? WHERE id = @spec", bad: notObjects, good: objects},
	{rule: "operation_specs_output_schema_object_check", sql: "UPDATE operation_specs SET output_schema = ?? WHERE id = @spec", bad: notObjects, good: append([]string{"NULL"}, objects...)},
	{rule: "operation_specs_error_schema_object_check", sql: "UPDATE operation_specs SET error_schema = ?? WHERE id = @spec", bad: notObjects, good: append([]string{"NULL"}, objects...)},
	{rule: "operation_specs_scopes_all_shape_check", sql: "UPDATE operation_specs SET scopes_all = ?? WHERE id = @spec", bad: notScopes, good: goodScope},
	{rule: "operation_specs_scopes_any_shape_check", sql: "UPDATE operation_specs SET scopes_any = ?? WHERE id = @spec", bad: notScopes, good: goodScope},
	{
		rule: "operation_specs_redact_paths_shape_check", sql: "UPDATE operation_specs SET redact_paths = ?? WHERE id = @spec",
		bad:  []string{"'{\"\"}'", "'{a}'", "'{/a,b}'", "ARRAY[E'/a\\n/b']", "ARRAY[E'/a\\n']", "'{NULL}'", "array_fill('/a'::text, '{101}')", "ARRAY['/' || repeat('a', 50000)]"},
		good: []string{"'{}'", "'{/}'", "'{/a/*/b,/c~1d}'", "array_fill('/a'::text, '{100}')", "ARRAY['/' || repeat('a', 49999)]"},
	},
	{rule: "operation_specs_payload_limit_check", sql: "UPDATE operation_specs SET payload_limit = ?? WHERE id = @spec", bad: []string{"-1", "1048577"}, good: []string{"0", "1048576", "NULL"}},
	{rule: "operation_specs_max_attempts_check", sql: "UPDATE operation_specs SET max_attempts = ?? WHERE id = @spec", bad: []string{"0", "11"}, good: []string{"1", "10"}},
	{rule: "operation_specs_visibility_check", sql: "UPDATE operation_specs SET visibility = ?? WHERE id = @spec", bad: []string{"''", "'public'"}, good: []string{"'account'", "'organization'"}},
	{rule: "operation_specs_annotations_object_check", sql: "UPDATE operation_specs SET annotations = ?? WHERE id = @spec", bad: notObjects, good: objects},
	{rule: "operation_specs_metadata_check", sql: "UPDATE operation_specs SET metadata = ?? WHERE id = @spec", bad: notMetadata, good: metadata},
	{rule: "operation_specs_namespace_free", sql: fmt.Sprintf(newSpec, "@org, @spoke, ??, 'y', 'query'"), bad: []string{"'hub'", "'HUB'", "'Hub'"}, good: []string{"'hubs'", "'my-hub'"}},
	{rule: "operation_specs_spoke_connected", sql: fmt.Sprintf(newSpec, "@org, ??, 'x', 'y', 'query'"), bad: []string{"@gone_spoke"}, good: []string{"@spoke", "@idle_spoke"}},
	{
		rule: "operation_specs_identity_immutable", hub: true, sql: "UPDATE operation_specs SET ?? WHERE id = @spec",
		bad:  []string{"id = @new", "org_id = @other_org", "spoke_id = @idle_spoke", "namespace = 'x'", "name = 'x'", "created_at = created_at - interval '1 hour'"},
		good: []string{"title = 'x'", "name = 'read'"},
	},
}

var spokesDeletes = []deleteCase{
	{
		fk: "spokes_account_id_fkey", delete: "DELETE FROM organization_members WHERE account_id = @member",
		gone: "SELECT count(*) = 1 FROM spokes WHERE id = @idle_spoke AND account_id IS NULL",
	},
	{fk: "operation_specs_spoke_id_fkey", delete: "DELETE FROM spokes WHERE id = @spoke", gone: "SELECT count(*) = 0 FROM operation_specs WHERE id = @spec"},
}

func TestX02_SpokesRules(t *testing.T) {
	t.Parallel()
	checkRules(t, spokesRules)
}

func TestC14_SpokesDeletes(t *testing.T) {
	t.Parallel()
	checkDeletes(t, spokesDeletes)
}

// C03: a spoke that is reconnecting keeps what it offers; one that is disconnected has lost it in the same transaction, by whatever hand.
func TestC03_OperationsGoWithTheConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	count := func() int {
		t.Helper()
		return get[int](t, w.app, "SELECT count(*) FROM operation_specs WHERE spoke_id = @spoke")
	}
	exec(t, w.app, "BEGIN")
	exec(t, w.app, "UPDATE spokes SET status = 'reconnecting' WHERE id = @spoke")
	if count() != 1 {
		t.Error("a spoke that is reconnecting has lost its operations")
	}
	exec(t, w.app, "UPDATE spokes SET status = 'disconnected', disconnected_at = now() WHERE id = @spoke")
	if count() != 0 {
		t.Error("a spoke that is disconnected still offers operations")
	}
	exec(t, w.app, "ROLLBACK")
	if count() != 1 {
		t.Error("a disconnection that was rolled back took the operations")
	}
}

// C03: an operation that is put while its spoke is being disconnected does not outlive it.
func TestC03_PutRacesDisconnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.connect(t, "org", "owner")
	exec(t, w.app, "BEGIN")
	exec(t, w.app, fmt.Sprintf(newSpec, "@org, @spoke, 'x', 'y', 'query'"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := run(t.Context(), other, "UPDATE spokes SET status = 'disconnected', disconnected_at = now() WHERE id = @spoke"); err != nil {
			t.Error(err)
		}
	}()
	for get[int](t, w.hub, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 0 {
		select {
		case <-done:
			t.Fatal("the disconnection did not wait for the operation that is being put")
		default:
		}
	}
	exec(t, w.app, "COMMIT")
	<-done
	if n := get[int](t, w.hub, "SELECT count(*) FROM operation_specs WHERE spoke_id = @spoke"); n != 0 {
		t.Errorf("%d operations of a disconnected spoke", n)
	}
}

// W04: both names, and what each finds.
func TestW04_QualifiedNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, fmt.Sprintf(newSpec, "@org, @idle_spoke, 'fs', 'read', 'query'"))
	for _, name := range list[string](t, w.app, "SELECT qualified_name FROM operation_specs ORDER BY 1") {
		if name != "fs."+ids["spoke"]+".read" && name != "fs."+ids["idle_spoke"]+".read" {
			t.Error(name)
		}
	}
	_, err := attempt(t, w.app, "", "UPDATE operation_specs SET qualified_name = 'x'")
	refuses(t, err, "428C9", "")
}

// W06: the sweeper takes a lease that ran out, then a grace period that is spent; many sweep at once, and each spoke goes once.
func TestW06_SweeperAndItsRivals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, `INSERT INTO spokes (org_id, name, grace_seconds, lease_expires_at)
		SELECT o, 's' || n, CASE WHEN n % 2 = 0 THEN 3600 ELSE 0 END, now() - interval '1 minute' FROM unnest(ARRAY[@org, @other_org]::uuid[]) o, generate_series(1, 40) n`)
	sweep := func() (total int) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range 4 {
			conn := connect(t, w.url)
			wg.Go(func() {
				for range 10 {
					var n int
					if err := conn.QueryRow(t.Context(), "SELECT sweep_spokes(7)").Scan(&n); err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					total += n
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		return total
	}
	total := sweep()
	for range 40 {
		more := sweep()
		total += more
		if more == 0 {
			break
		}
	}
	if total != 80+40 { // all are reconnecting for a while, and half of them disconnected
		t.Errorf("%d steps", total)
	}
	for status, want := range map[string]int{"reconnecting": 40, "disconnected": 40 + 1, "connected": 3} {
		if got := get[int](t, w.hub, "SELECT count(*) FROM spokes WHERE status = '"+status+"'"); got != want {
			t.Errorf("%d spokes are %s, want %d", got, status, want)
		}
	}
}

// W22: a lease is renewed without a revision.
func TestW06_HeartbeatsAreNoRevisions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := get[string](t, w.app, "SELECT revision || ' ' || updated_at FROM spokes WHERE id = @spoke")
	exec(t, w.app, "UPDATE spokes SET lease_expires_at = now() + interval '2 hours' WHERE id = @spoke")
	after := get[string](t, w.app, "SELECT revision || ' ' || updated_at FROM spokes WHERE id = @spoke")
	if before[:2] != after[:2] || before == after {
		t.Errorf("%s, then %s", before, after)
	}
}

// What is for one account is not seen by another, unless it is an admin.
func TestOperationVisibility(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, "UPDATE operation_specs SET visibility = 'account' WHERE id = @spec")
	see := func(account, level string) int {
		t.Helper()
		exec(t, w.app, "BEGIN")
		defer exec(t, w.app, "ROLLBACK")
		exec(t, w.app, fmt.Sprintf(asAccount, account, level))
		return get[int](t, w.app, "SELECT count(*) FROM operation_specs")
	}
	for who, want := range map[[2]string]int{{"owner", "member"}: 1, {"member", "member"}: 0, {"member", "admin"}: 1} {
		if got := see(who[0], who[1]); got != want {
			t.Errorf("%v sees %d, want %d", who, got, want)
		}
	}
}
