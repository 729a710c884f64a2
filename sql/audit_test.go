package sql_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/internal/postgres/pgtest"
)

// anotherEntry copies @org's first entry to position 99, with other values of some columns: ?? where none is given.
func anotherEntry(columns string, values ...string) string {
	if values == nil {
		values = []string{"??"}
	}
	changed := make([]string, len(values))
	for i, column := range strings.Fields(columns) {
		changed[i] = "'" + column + "', " + values[i]
	}
	return "INSERT INTO audit_logs SELECT (jsonb_populate_record(l, jsonb_build_object('id', hub_uuidv7(), 'position', 99, 'created_at', clock_timestamp()) || jsonb_build_object(" +
		strings.Join(changed, ", ") + "))).* FROM audit_logs l WHERE chain_id = @org AND position = 1"
}

// removeThrough moves the anchor, as retention does.
const removeThrough = "UPDATE audit_chains SET anchor_position = %d, anchor_hash = (SELECT hash FROM audit_logs WHERE chain_id = @org AND position = %[1]d) WHERE chain_id = @org"

var auditRules = []ruleCase{
	{rule: "audit_chains_pkey", hub: true, sql: "INSERT INTO audit_chains (chain_id) VALUES (??)", bad: []string{"@org", "@platform"}, good: []string{"@new"}},
	{rule: "audit_chains_hash_length_check", hub: true, sql: "INSERT INTO audit_chains (chain_id, hash) VALUES (@new, ??)", bad: []string{"''", "sha224('x')", "sha512('x')"}, good: []string{"sha256('x')"}},
	{rule: "audit_chains_hash_length_check", hub: true, sql: "INSERT INTO audit_chains (chain_id, anchor_hash) VALUES (@new, ??)", bad: []string{"''", "sha224('x')", "sha512('x')"}, good: []string{"sha256('x')"}},
	{rule: "audit_chains_anchor_behind_head_check", hub: true, sql: "INSERT INTO audit_chains (chain_id, position, anchor_position) VALUES (@new, ??)", bad: []string{"0, 1", "5, 6", "5, -1", "-1, -1"}, good: []string{"0, 0", "5, 5", "5, 3"}},
	{
		// X03: the head follows entries, and the anchor moves on, to one that is there.
		rule: "audit_chains_forward", hub: true, before: fmt.Sprintf(removeThrough, 2), sql: "UPDATE audit_chains SET ?? WHERE chain_id = @org",
		bad: []string{
			"chain_id = @new", "created_at = created_at - interval '1 hour'", "position = position + 1", "position = position - 1", "hash = sha256('x')", "position = position + 1, hash = sha256('x')",
			"position = position - 1, hash = (SELECT hash FROM audit_logs l WHERE (l.chain_id, l.position) = (audit_chains.chain_id, audit_chains.position - 1))",
			"anchor_position = 3", "anchor_hash = sha256('x')", "anchor_position = 3, anchor_hash = sha256('x')", "anchor_position = 1, anchor_hash = (SELECT hash FROM audit_logs WHERE chain_id = @org AND position = 1)",
			"anchor_position = 0, anchor_hash = previous.hash FROM (SELECT decode(repeat('00', 32), 'hex') AS hash) previous",
		},
		good: []string{
			"updated_at = now()", "position = position, hash = hash", "anchor_position = 3, anchor_hash = (SELECT hash FROM audit_logs WHERE chain_id = @org AND position = 3)",
			"anchor_position = position, anchor_hash = hash",
		},
	},
	{
		rule: "audit_chains_forward", hub: true, before: anotherEntry("position hash", "(SELECT position + 1 FROM audit_chains WHERE chain_id = @org)", "sha256('x')"),
		sql: "UPDATE audit_chains SET position = position + 1, hash = ?? WHERE chain_id = @org", bad: []string{"sha256('y')", "hash"}, good: []string{"sha256('x')"},
	},
	// Nobody's statement passes these two: only who can switch triggers off.
	{
		rule: "audit_chains_kept", hub: true, before: "INSERT INTO audit_chains (chain_id) VALUES (@new)", sql: "SELECT set_config('session_replication_role', ??, true); DELETE FROM audit_chains WHERE chain_id = @new",
		bad: []string{"'origin'", "'local'"}, good: []string{"'replica'"},
	},
	{rule: "audit_logs_never_truncated", hub: true, sql: "SELECT set_config('session_replication_role', ??, true); TRUNCATE audit_logs; SELECT 1", bad: []string{"'origin'", "'local'"}, good: []string{"'replica'"}},
	{
		rule: "audit_logs_append_only", hub: true, sql: "UPDATE audit_logs SET ?? WHERE chain_id = @org AND position = 1",
		bad: []string{
			"chain_id = @other_org, org_id = NULL", "id = @new", "position = 99", "org_id = NULL", "session_id = @session", "owner_id = @owner", "actor_source = 'api'", "database_user = 'x'", "api_key_id = @key",
			"acting_session_id = @session", "action = 'x.y'", "target_type = 'x'", "target_id = @new", "target_id = NULL", `changes = '{"a": 1}'`, "previous_hash = sha256('x')", "hash = sha256('x')", "created_at = now()",
		},
		good: []string{"action = action, org_id = @org"},
	},
	{
		rule: "audit_logs_removed_behind_anchor", hub: true, before: fmt.Sprintf(removeThrough, 2), sql: "DELETE FROM audit_logs WHERE chain_id = @org AND position = ??",
		bad: []string{"3", "(SELECT position FROM audit_chains WHERE chain_id = @org)"}, good: []string{"1", "2"},
	},
	{rule: "audit_logs_pkey", hub: true, sql: anotherEntry("id"), bad: []string{"(SELECT id FROM audit_logs WHERE chain_id = @org AND position = 2)"}, good: []string{"@new", "(SELECT id FROM audit_logs WHERE chain_id = @other_org AND position = 2)"}},
	{rule: "audit_logs_position_key", hub: true, sql: anotherEntry("position"), bad: []string{"2"}, good: []string{"98"}},
	{rule: "audit_logs_created_at_key", hub: true, sql: anotherEntry("created_at"), bad: []string{"(SELECT created_at FROM audit_logs WHERE chain_id = @org AND position = 2)"}, good: []string{"now()"}},
	{rule: "audit_logs_chain_id_fkey", hub: true, sql: anotherEntry("org_id chain_id", "NULL", "??"), bad: []string{"@new"}, good: []string{"@org", "@other_org", "@platform"}},
	{
		rule: "audit_logs_chain_id_fkey_in_use", hub: true, before: "ALTER TABLE audit_chains DISABLE TRIGGER audit_chains_kept; INSERT INTO audit_chains (chain_id) VALUES (@new)",
		sql: "DELETE FROM audit_chains WHERE chain_id = ??", bad: []string{"@org"}, good: []string{"@new"},
	},
	{rule: "audit_logs_org_id_fkey", hub: true, before: "INSERT INTO audit_chains (chain_id) VALUES (@new)", sql: anotherEntry("chain_id org_id", "@new", "??"), bad: []string{"@new"}, good: []string{"NULL"}},
	{rule: "audit_logs_session_id_fkey", hub: true, sql: anotherEntry("session_id"), bad: []string{"@new", "@other_session"}, good: []string{"@session", "NULL"}},
	{rule: "audit_logs_owner_id_fkey", hub: true, sql: anotherEntry("owner_id"), bad: []string{"@new", "@org"}, good: []string{"@member", "@nobody", "@system"}},
	// C01: who has done something is not deleted.
	{rule: "audit_logs_owner_id_fkey_in_use", hub: true, before: anotherEntry("owner_id", "@nobody"), sql: "DELETE FROM accounts WHERE id = ??", bad: []string{"@nobody"}, good: []string{"@member"}},
	{rule: "audit_logs_id_version_check", hub: true, sql: anotherEntry("id"), bad: notUUIDv7, good: uuidv7},
	{rule: "audit_logs_org_is_chain_check", hub: true, sql: anotherEntry("org_id"), bad: []string{"@other_org", "@new"}, good: []string{"@org", "NULL"}},
	{rule: "audit_logs_actor_source_check", hub: true, sql: anotherEntry("actor_source"), bad: []string{"''", "'API'", "'sweeper'"}, good: []string{"'api'", "'psql'", "'bootstrap'", "'worker'", "'admin'"}},
	{
		rule: "audit_logs_action_shape_check", hub: true, sql: anotherEntry("action"), bad: []string{"''", "'role'", "'role.'", "'.create'", "'Role.create'", "'role.create.x'", "'role create'", "'role.cre-ate'", "'_role.create'", "'role.create1'", "E'role.create\\n'"},
		good: []string{"'role.create'", "'agent_role.set_up'"},
	},
	{rule: "audit_logs_hash_length_check", hub: true, sql: anotherEntry("hash"), bad: []string{"''::bytea", "sha224('x')", "sha512('x')"}, good: []string{"sha256('x')"}},
	{rule: "audit_logs_hash_length_check", hub: true, sql: anotherEntry("previous_hash"), bad: []string{"''::bytea", "sha224('x')", "sha512('x')"}, good: []string{"sha256('x')"}},

	{rule: "retention_policies_pkey", hub: true, sql: "INSERT INTO retention_policies (org_id) VALUES (??)", bad: []string{"@org"}, good: []string{"@other_org"}, before: "DELETE FROM retention_policies WHERE org_id = @other_org"},
	{rule: "retention_policies_org_id_fkey", hub: true, sql: "INSERT INTO retention_policies (org_id) VALUES (??)", bad: []string{"@new"}, good: []string{"@other_org"}, before: "DELETE FROM retention_policies WHERE org_id = @other_org"},
	{rule: "retention_policies_audit_days_check", sql: "UPDATE retention_policies SET audit_days = ??", bad: []string{"0", "-1", "36501"}, good: []string{"1", "36500", "NULL"}},
	{rule: "retention_policies_metadata_check", sql: "UPDATE retention_policies SET metadata = ??", bad: notMetadata, good: metadata},
	{
		rule: "retention_policies_identity_immutable", hub: true, sql: "UPDATE retention_policies SET ?? WHERE org_id = @org",
		bad: []string{"org_id = @other_org", "created_at = created_at - interval '1 hour'"}, good: []string{"audit_days = 7", "org_id = @org"},
	},
}

// inSession leaves an entry of a change in @session.
const inSession = "SELECT set_config('hub.session_id', @session, true); UPDATE roles SET prompt = 'x' WHERE id = @role;"

var auditDeletes = []deleteCase{
	{
		fk: "audit_logs_org_id_fkey", before: inSession + "DELETE FROM calls; DELETE FROM spokes; DELETE FROM sessions; DELETE FROM clients; DELETE FROM tasks; DELETE FROM projects; DELETE FROM roles", delete: "DELETE FROM organizations WHERE id = @org",
		gone: "SELECT bool_and(org_id IS NULL) AND (SELECT broken_how IS NULL FROM verify_audit_chain(@org)) FROM audit_logs WHERE chain_id = @org",
	},
	{
		fk: "audit_logs_session_id_fkey", before: inSession, delete: "DELETE FROM sessions WHERE id = @session",
		gone: "SELECT session_id IS NULL AND acting_session_id = @session AND org_id = @org AND (SELECT broken_how IS NULL FROM verify_audit_chain(@org)) FROM audit_logs WHERE acting_session_id = @session AND action = 'role.update'",
	},
	{fk: "retention_policies_org_id_fkey", before: "DELETE FROM calls; DELETE FROM spokes; DELETE FROM sessions; DELETE FROM clients; DELETE FROM tasks; DELETE FROM projects; DELETE FROM roles", delete: "DELETE FROM organizations WHERE id = @org", gone: "SELECT NOT EXISTS (SELECT FROM retention_policies WHERE org_id = @org)"},
}

func TestX03_AuditRules(t *testing.T) {
	t.Parallel()
	checkRules(t, auditRules)
}

func TestX03_AuditDeletes(t *testing.T) {
	t.Parallel()
	checkDeletes(t, auditDeletes)
}

// idNames are the fixtures by their ids.
var idNames = func() map[string]string {
	names := map[string]string{}
	for name, id := range ids {
		names[id] = name
	}
	return names
}()

// entries are the audit entries since the last call, as "chain: action type/target by actor (source, database user, key, session): changes".
func (w *world) entries(t testing.TB) []string {
	t.Helper()
	exec(t, w.hub, "CREATE TEMPORARY TABLE IF NOT EXISTS seen (id uuid)")
	rows := list[string](t, w.hub, `
		SELECT concat_ws('|', l.chain_id, l.action, l.target_type, coalesce(l.target_id::text, '-'), l.owner_id, l.actor_source, l.database_user, coalesce(l.api_key_id::text, '-'),
		                 coalesce(l.acting_session_id::text, '-') || CASE WHEN l.session_id IS NULL AND l.acting_session_id IS NOT NULL THEN ' of another chain' ELSE '' END, l.changes)
		FROM audit_logs l WHERE l.id NOT IN (SELECT id FROM seen) ORDER BY l.chain_id, l.position`)
	exec(t, w.hub, "INSERT INTO seen SELECT id FROM audit_logs WHERE id NOT IN (SELECT id FROM seen)")
	for i, row := range rows {
		f := strings.SplitN(row, "|", 10)
		for j, value := range f[:9] {
			id, rest, _ := strings.Cut(value, " ")
			if name, ok := idNames[id]; ok {
				f[j] = strings.TrimSpace(name + " " + rest)
			}
		}
		rows[i] = fmt.Sprintf("%s: %s %s/%s by %s (%s, %s, %s, %s): %s", f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9])
	}
	return rows
}

// Triggers write the log, whoever makes the change, and it says who that was.
func TestX03_EveryChangeIsOnRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, "INSERT INTO accounts (id, kind, display_name, home_org_id) VALUES (@high, 'human', 'x', @other_org)")
	w.entries(t)
	api := "by owner (api, hub_app, owner_key, -)"
	psql := "by system (psql, hub, -, -)"
	platform := as("owner", "platform", "'on'")
	for _, c := range []struct {
		conn *pgx.Conn
		sql  string
		want []string
	}{
		// Who: a request, in a session; a platform admin, on another organisation's and on the platform's accounts; somebody in psql.
		{w.app, "INSERT INTO roles (org_id, id, name) VALUES (@org, @new, 'x')", []string{`org: role.create role/new ` + api + `: {"name": {"after": "x"}, "origin": {"after": "api"}}`}},
		{w.app, as("member", "session_id", "@session") + "UPDATE roles SET name = 'y' WHERE id = @new", []string{`org: role.update role/new by member (api, hub_app, key, session): {"name": {"after": "y", "before": "x"}}`}},
		{w.app, "DELETE FROM roles WHERE id = @new", []string{`org: role.delete role/new ` + api + `: {"name": {"before": "y"}, "origin": {"before": "api"}}`}},
		{w.app, as("owner", "platform", "'on'", "session_id", "@session") + "UPDATE accounts SET access_level = 'admin' WHERE id IN (@high, @nobody)", []string{
			`platform: account.update account/nobody by owner (api, hub_app, owner_key, session of another chain): {"access_level": {"after": "admin", "before": "member"}}`,
			`other_org: account.update account/high by owner (api, hub_app, owner_key, session of another chain): {"access_level": {"after": "admin", "before": "member"}}`,
		}},
		{w.hub, "UPDATE roles SET prompt = 'Build!' WHERE id = @role", []string{`org: role.update role/role ` + psql + `: {"prompt": {"changed": true}}`}},
		{w.hub, acting("org", "admin", true, "actor_source", "'worker'") + "UPDATE roles SET origin = 'import' WHERE id = @role", []string{`org: role.update role/role by admin (worker, hub, -, -): {"origin": {"after": "import", "before": "api"}}`}},
		{w.hub, "SELECT admin_set_account_status(@member, 'suspended')", []string{`org: account.suspend account/member by system (admin, hub, -, -): {"status": {"after": "suspended", "before": "active"}}`}},
		// What: each table.
		{w.app, platform + "UPDATE accounts SET status = 'active' WHERE id = @member", []string{`org: account.activate account/member ` + api + `: {"status": {"after": "active", "before": "suspended"}}`}},
		{w.app, "INSERT INTO accounts (id, kind, display_name, email, home_org_id, data) VALUES (@new, 'human', 'New', 'new@one', @org, '{\"a\": 1}')", []string{
			`org: account.create account/new ` + api + `: {"data": {"changed": true}, "kind": {"after": "human"}, "email": {"changed": true}, "status": {"after": "active"}, "home_org_id": {"after": "` + ids["org"] + `"}, "access_level": {"after": "member"}, "display_name": {"changed": true}}`,
		}},
		{w.app, "UPDATE accounts SET display_name = 'Newer', email = NULL, metadata = '{\"_a\": {}}' WHERE id = @new", []string{
			`org: account.update account/new ` + api + `: {"email": {"changed": true}, "metadata": {"changed": true}, "display_name": {"changed": true}}`,
		}},
		{w.app, "INSERT INTO organization_members (org_id, account_id) VALUES (@org, @new)", []string{`org: member.create member/new ` + api + `: {"account_id": {"after": "` + ids["new"] + `"}, "membership_level": {"after": "member"}}`}},
		{w.app, "UPDATE organization_members SET membership_level = 'admin' WHERE account_id = @new", []string{`org: member.update member/new ` + api + `: {"membership_level": {"after": "admin", "before": "member"}}`}},
		{w.app, "INSERT INTO api_keys (org_id, id, account_id, name, key_hash, scopes, tags) VALUES (@org, @new, @new, 'x', sha256('x'), '{*}', '{ci}')", []string{
			`org: key.create key/new ` + api + `: {"name": {"after": "x"}, "tags": {"after": ["ci"]}, "scopes": {"after": ["*"]}, "enabled": {"after": true}, "account_id": {"after": "` + ids["new"] + `"}}`,
		}},
		{w.app, "UPDATE api_keys SET name = 'y', scopes = '{}' WHERE id = @new", []string{`org: key.update key/new ` + api + `: {"name": {"after": "y", "before": "x"}, "scopes": {"after": [], "before": ["*"]}}`}},
		{w.app, "UPDATE api_keys SET enabled = false WHERE id = @new", []string{`org: key.disable key/new ` + api + `: {"enabled": {"after": false, "before": true}}`}},
		{w.app, "UPDATE api_keys SET enabled = true WHERE id = @new", []string{`org: key.enable key/new ` + api + `: {"enabled": {"after": true, "before": false}}`}},
		{w.app, "UPDATE api_keys SET rotated_to_id = @owner_key WHERE id = @new", []string{`org: key.rotate key/new ` + api + `: {"rotated_to_id": {"after": "` + ids["owner_key"] + `"}}`}},
		{w.app, "UPDATE api_keys SET revoked_at = '2020-01-01T00:00:00Z' WHERE id = @new", []string{`org: key.revoke key/new ` + api + `: {"revoked_at": {"after": "2020-01-01T00:00:00+00:00"}}`}},
		{w.app, "DELETE FROM organization_members WHERE account_id = @new", []string{ // and with it its key
			`org: member.delete member/new ` + api + `: {"account_id": {"before": "` + ids["new"] + `"}, "membership_level": {"before": "admin"}}`,
			`org: key.delete key/new ` + api + `: {"name": {"before": "y"}, "tags": {"before": ["ci"]}, "enabled": {"before": true}, "account_id": {"before": "` + ids["new"] + `"}, "revoked_at": {"before": "2020-01-01T00:00:00+00:00"}, "rotated_to_id": {"before": "` + ids["owner_key"] + `"}}`,
		}},
		{w.app, platform + "DELETE FROM accounts WHERE id = @new", []string{
			`org: account.delete account/new ` + api + `: {"kind": {"before": "human"}, "data": {"changed": true}, "status": {"before": "active"}, "metadata": {"changed": true}, "home_org_id": {"before": "` + ids["org"] + `"}, "access_level": {"before": "member"}, "display_name": {"changed": true}}`,
		}},
		{w.app, "UPDATE organizations SET name = 'Uno' WHERE id = @org", []string{`org: organization.update organization/org ` + api + `: {"name": {"after": "Uno", "before": "One"}}`}},
		{w.app, platform + "UPDATE organizations SET slug = 'another' WHERE id = @other_org", []string{`other_org: organization.update organization/other_org ` + api + `: {"slug": {"after": "another", "before": "other"}}`}},
		{w.app, "SELECT transfer_organization(@org, @admin)", []string{
			`org: member.update member/admin ` + api + `: {"membership_level": {"after": "owner", "before": "admin"}}`,
			`org: organization.transfer organization/org ` + api + `: {"owner_id": {"after": "` + ids["admin"] + `", "before": "` + ids["owner"] + `"}}`,
		}},
		{w.app, "UPDATE organizations SET deleted_at = '2020-01-01T00:00:00Z' WHERE id = @org", []string{`org: organization.delete organization/org ` + api + `: {"deleted_at": {"after": "2020-01-01T00:00:00+00:00"}}`}},
		{w.app, "UPDATE organizations SET deleted_at = NULL WHERE id = @org", []string{`org: organization.restore organization/org ` + api + `: {"deleted_at": {"before": "2020-01-01T00:00:00+00:00"}}`}},
		{w.app, "UPDATE watch_policies SET stall_minutes = NULL", []string{`org: watch.update watch/org ` + api + `: {"stall_minutes": {"before": 15}}`}},
		{w.app, "UPDATE retention_policies SET audit_days = 90", []string{`org: retention.update retention/org ` + api + `: {"audit_days": {"after": 90}}`}},
		{w.app, platform + "SELECT create_organization('new', 'New', @nobody, '{}', '{}', @high, sha256('new'))", []string{
			`(new): organization.create organization/(new) ` + api + `: {"name": {"after": "New"}, "slug": {"after": "new"}, "owner_id": {"after": "` + ids["nobody"] + `"}}`,
			`(new): member.create member/nobody ` + api + `: {"account_id": {"after": "` + ids["nobody"] + `"}, "membership_level": {"after": "owner"}}`,
			`(new): key.create key/high ` + api + `: {"name": {"after": "first key"}, "scopes": {"after": ["*"]}, "enabled": {"after": true}, "account_id": {"after": "` + ids["nobody"] + `"}}`,
		}},
		// W02: the keys go with the account, each in its organisation's chain.
		{w.app, platform + "UPDATE accounts SET status = 'deactivated' WHERE id = @other_owner", []string{
			`platform: account.deactivate account/other_owner ` + api + `: {"status": {"after": "deactivated", "before": "active"}}`,
			`other_org: key.revoke key/other_key ` + api + `: (time)`,
		}},
		// Two changes are two entries, none is none, and what was undone has not happened.
		{w.app, "INSERT INTO roles (org_id, id, name) VALUES (@org, @new, 'x'); DELETE FROM roles WHERE id = @new", []string{
			`org: role.create role/new ` + api + `: {"name": {"after": "x"}, "origin": {"after": "api"}}`, `org: role.delete role/new ` + api + `: {"name": {"before": "x"}, "origin": {"before": "api"}}`,
		}},
		{w.app, "UPDATE roles SET name = name; UPDATE roles SET metadata = '{}'", nil},
		{w.app, "INSERT INTO projects (org_id, slug, name) VALUES (@org, 'x', 'x'); UPDATE sessions SET title = 'x'", nil},
		{w.app, "SELECT record_key_uses(ARRAY[@org]::uuid[], ARRAY[@key]::uuid[], ARRAY[now()])", nil},
		{w.app, "SAVEPOINT s; UPDATE roles SET prompt = 'x'; ROLLBACK TO s", nil},
	} {
		exec(t, c.conn, "BEGIN;"+c.sql+"; COMMIT")
		got := w.entries(t)
		for i := range got {
			if c.want != nil && i < len(c.want) && strings.HasPrefix(c.want[i], "(new)") {
				chain, _, _ := strings.Cut(got[i], ":")
				got[i] = strings.ReplaceAll(got[i], chain, "(new)")
			}
			if i < len(c.want) && strings.HasSuffix(c.want[i], "(time)") {
				got[i] = got[i][:strings.Index(got[i], `{"revoked_at"`)] + "(time)"
			}
		}
		if len(got) != len(c.want) {
			t.Errorf("%s\n\tis on record as\n\t%s", c.sql, strings.Join(got, "\n\t"))
			continue
		}
		for i := range got {
			if got[i] != c.want[i] && !sameEntry(got[i], c.want[i]) {
				t.Errorf("%s\n\tis on record as\n\t%s\n\tand not\n\t%s", c.sql, got[i], c.want[i])
			}
		}
	}
	if _, err := run(t.Context(), w.app, "BEGIN; UPDATE roles SET prompt = 'y'; SELECT 1/0; COMMIT"); err == nil {
		t.Error("no division by zero")
	}
	exec(t, w.app, "ROLLBACK")
	if got := w.entries(t); len(got) != 0 {
		t.Errorf("a transaction that failed is on record as %v", got)
	}
}

// sameEntry compares entries whose changes name the columns in another order.
func sameEntry(a, b string) bool {
	headA, changesA, _ := strings.Cut(a, "): {")
	headB, changesB, _ := strings.Cut(b, "): {")
	var x, y any
	errX, errY := json.Unmarshal([]byte("{"+changesA), &x), json.Unmarshal([]byte("{"+changesB), &y)
	return headA == headB && errX == nil && errY == nil && fmt.Sprint(x) == fmt.Sprint(y)
}

func TestX03_TheFirstStartIsOnRecord(t *testing.T) {
	t.Parallel()
	pgtest.Database(t)
	w := &world{hub: connect(t, pgtest.URL(t, "hub"))}
	exec(t, w.hub, "SELECT bootstrap_hub('default', 'Default', 'admin', sha256('first'))")
	var got []string
	for _, entry := range w.entries(t) {
		head, _, _ := strings.Cut(entry, "): ")
		words := strings.SplitN(head, " ", 4)
		got = append(got, words[1]+" "+words[3])
	}
	const by = " by system (bootstrap, hub, -, -"
	if want := []string{"account.create" + by, "organization.create" + by, "member.create" + by, "key.create" + by}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// What is secret is not in the log at all, and what is personal or long is only named.
func TestX03_SecretsAndPersonalValuesStayOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const canary = "canary"
	exec(t, w.app, `
		INSERT INTO accounts (id, kind, display_name, email, home_org_id, data, metadata) VALUES (@new, 'human', 'canary', 'canary@canary', @org, '{"canary": 1}', '{"_canary": {}}');
		UPDATE accounts SET display_name = 'canary 2', email = 'canary@two', data = '{"canary": 2}', metadata = '{"_canary": {"a": 1}}' WHERE id = @new;
		INSERT INTO roles (org_id, name, description, prompt, data, metadata) VALUES (@org, 'x', 'canary', 'canary', '{"canary": 1}', '{"_canary": {}}');
		UPDATE roles SET description = 'canary 2', prompt = 'canary 2', data = '{"canary": 2}' WHERE name = 'x';
		DELETE FROM roles WHERE name = 'x';
		UPDATE organizations SET data = '{"canary": 1}', metadata = '{"_canary": {}}' WHERE id = @org;
		INSERT INTO organization_members (org_id, account_id, metadata) VALUES (@org, @new, '{"_canary": {}}');
		INSERT INTO api_keys (org_id, account_id, name, key_hash, metadata) VALUES (@org, @new, 'x', sha256('canary'), '{"_canary": {}}');
		UPDATE retention_policies SET metadata = '{"_canary": {}}'`)
	exec(t, w.app, as("owner", "platform", "'on'")+"DELETE FROM accounts WHERE id = @new")
	if got := list[string](t, w.hub, "SELECT l::text FROM audit_logs l WHERE l::text ILIKE '%"+canary+"%' OR strpos(l::text, encode(sha256('canary'), 'hex')) > 0 OR changes ? 'key_hash'"); len(got) > 0 {
		t.Errorf("on record: %s", strings.Join(got, "\n"))
	}
	// Each of them is named, in every entry that it is in.
	if got := get[string](t, w.hub, `
		SELECT string_agg(DISTINCT c.key, ' ' ORDER BY c.key) FROM audit_logs l, jsonb_each(l.changes) c WHERE l.chain_id = @org AND c.value = '{"changed": true}'`); got != "data description display_name email metadata prompt" {
		t.Errorf("named as changed: %s", got)
	}
	if got := list[string](t, w.hub, `
		SELECT l.action || ' ' || c.key FROM audit_logs l, jsonb_each(l.changes) c WHERE c.key IN ('data', 'metadata', 'description', 'display_name', 'email', 'prompt') AND c.value <> '{"changed": true}'`); len(got) > 0 {
		t.Errorf("with their values: %v", got)
	}
}

// Append-only for everybody: by privilege for hub_app, by rule for hub_system (retention's role) and the superuser. Of the owner that is no
// superuser TestX01_AnOwnerThatIsNoSuperuser tells.
func TestX03_TheLogIsAppendOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, sql := range []string{"UPDATE audit_logs SET action = 'x.y'", "DELETE FROM audit_logs", "TRUNCATE audit_logs", "UPDATE audit_chains SET position = 0", "DELETE FROM audit_chains", "TRUNCATE audit_chains, audit_logs"} {
		_, err := attempt(t, w.app, "", sql)
		refuses(t, err, "42501", "")
	}
	for _, c := range []struct{ sql, state, rule string }{
		{"UPDATE audit_logs SET action = 'x.y'", "42501", ""}, {"DELETE FROM audit_logs", "23514", "audit_logs_removed_behind_anchor"}, {"TRUNCATE audit_logs", "42501", ""},
		{"UPDATE audit_chains SET position = 0", "23514", "audit_chains_forward"}, {"UPDATE audit_chains SET hash = sha256('x')", "23514", "audit_chains_forward"}, {"DELETE FROM audit_chains", "42501", ""},
		{"INSERT INTO audit_chains (chain_id) VALUES (@org)", "23505", "audit_chains_pkey"},
	} {
		_, err := attempt(t, w.hub, "SET LOCAL ROLE hub_system", c.sql)
		refuses(t, err, c.state, c.rule)
	}
	for _, c := range []struct{ sql, rule string }{
		{"UPDATE audit_logs SET action = 'x.y'", "audit_logs_append_only"}, {"UPDATE audit_logs SET org_id = NULL", "audit_logs_append_only"}, {"DELETE FROM audit_logs", "audit_logs_removed_behind_anchor"},
		{"TRUNCATE audit_logs", "audit_logs_never_truncated"}, {"TRUNCATE audit_chains CASCADE", "audit_logs_never_truncated"}, {"UPDATE audit_chains SET position = 0", "audit_chains_forward"}, {"DELETE FROM audit_chains", "audit_chains_kept"},
	} {
		_, err := attempt(t, w.hub, "", c.sql)
		refuses(t, err, "23514", c.rule)
	}
	// Nor does a request write what it likes.
	_, err := attempt(t, w.app, "", "SELECT append_audit(@org, 'x.y', 'x', NULL, '{}')")
	refuses(t, err, "42501", "")
	_, err = attempt(t, w.app, "CREATE TEMPORARY TABLE fake (id uuid, org_id uuid)", "CREATE TRIGGER fake AFTER INSERT ON fake FOR EACH ROW EXECUTE FUNCTION record_audit('fake')")
	refuses(t, err, "42501", "")
}

// Whose actions are on record is not deleted.
func TestC01_AnAccountWithHistoryIsDeactivatedNotDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := attempt(t, w.hub, "", "DELETE FROM accounts WHERE id = @member")
	if err != nil {
		t.Errorf("without history: %v", err)
	}
	exec(t, w.app, "BEGIN;"+as("member")+"UPDATE roles SET prompt = 'x' WHERE id = @role; COMMIT")
	_, err = attempt(t, w.hub, "", "DELETE FROM accounts WHERE id = @member")
	refuses(t, err, "23503", "audit_logs_owner_id_fkey")
	if _, err := attempt(t, w.hub, "", "UPDATE accounts SET status = 'deactivated' WHERE id = @member"); err != nil {
		t.Error(err)
	}
	// Not even by itself, in the transaction that is its history.
	_, err = attempt(t, w.app, as("nobody", "platform", "'on'", "org_id", "@other_org"), "DELETE FROM accounts WHERE id = @nobody")
	refuses(t, err, "23503", "audit_logs_owner_id_fkey")
}

// Verification ---------------------------------------------------------------------------------------------------------

// verified is what verify_audit_chain says: "intact", or what is broken where, and the id (by the position that its entry had before).
const verified = "SELECT coalesce(broken_how || ' ' || broken_position || coalesce(' ' || (SELECT position FROM originals o WHERE o.id = broken_id)::text, CASE WHEN broken_id IS NULL THEN '' ELSE ' new' END), 'intact') FROM verify_audit_chain(@org)"

// rehash makes an entry's hash fit what it says.
const rehash = "UPDATE audit_logs l SET hash = audit_hash(l) WHERE chain_id = @org AND position = %d;"

func TestX03_TamperingIsNoticedAndNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, views)
	exec(t, w.app, "BEGIN;"+as("owner", "session_id", "@session")+"UPDATE roles SET prompt = 'x'; COMMIT")
	exec(t, w.hub, "CREATE TEMPORARY TABLE originals AS SELECT * FROM audit_logs WHERE chain_id = @org")
	head := get[int](t, w.hub, "SELECT position FROM audit_chains WHERE chain_id = @org")
	if head < 8 {
		t.Fatalf("only %d entries", head)
	}
	tamper := func(what, sql, want string) {
		t.Helper()
		exec(t, w.hub, "BEGIN; SET LOCAL session_replication_role = replica;")
		defer exec(t, w.hub, "ROLLBACK")
		if tag := exec(t, w.hub, sql); tag.RowsAffected() == 0 {
			t.Fatalf("%s: %s", what, tag)
		}
		if got := get[string](t, w.hub, verified); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	if got := get[string](t, w.hub, "SELECT format('%s %s', entries, head_position) || ' ' || (head_hash = (SELECT hash FROM audit_logs WHERE chain_id = @org ORDER BY position DESC LIMIT 1))::text FROM verify_audit_chain(@org)"); got != fmt.Sprintf("%d %[1]d true", head) {
		t.Errorf("entries, head, its hash: %s", got)
	}
	tamper("nothing", "SELECT 1", "intact")

	// A superuser's UPDATE of each column.
	columns := map[string]string{
		"id": "@new", "owner_id": "@nobody", "actor_source": "'worker'", "database_user": "database_user || ' '", "api_key_id": "@high", "acting_session_id": "@high", "action": "'x.y'", "target_type": "'x'", "target_id": "@high",
		"changes": `changes || '{"a": 1}'`, "previous_hash": "sha256('x')", "hash": "sha256('x')", "created_at": "created_at - interval '1 microsecond'",
		"chain_id": "", "position": "", // below
		"org_id": "", "session_id": "", // become NULL with their targets
	}
	difference(t, "columns of audit_logs that this test does not change", "columns that audit_logs lacks", list[string](t, w.hub, "SELECT name FROM columns WHERE tab = 'audit_logs'"), slices.Collect(maps.Keys(columns)))
	for column, value := range columns {
		if value == "" {
			continue
		}
		for _, position := range []int{1, 4, head} {
			want := fmt.Sprintf("altered %d %[1]d", position)
			if column == "id" {
				want = fmt.Sprintf("altered %d new", position)
			}
			tamper(column, fmt.Sprintf("UPDATE audit_logs SET %s = %s WHERE chain_id = @org AND position = %d", column, value, position), want)
		}
	}
	tamper("what changed is respelled", `UPDATE audit_logs SET changes = '{"name": {"after": "ONE"}}' WHERE chain_id = @org AND position = 1`, "altered 1 1")
	tamper("NULL for a key", "UPDATE audit_logs SET api_key_id = NULL, acting_session_id = NULL WHERE chain_id = @org AND acting_session_id IS NOT NULL", fmt.Sprintf("altered %d %[1]d", get[int](t, w.hub, "SELECT min(position) FROM originals WHERE acting_session_id IS NOT NULL")))
	tamper("the target is gone", "UPDATE audit_logs SET org_id = NULL, session_id = NULL WHERE chain_id = @org", "intact")

	// DELETE.
	for _, position := range []int{1, 4, head} {
		tamper("deleted", fmt.Sprintf("DELETE FROM audit_logs WHERE chain_id = @org AND position = %d", position), fmt.Sprintf("missing %d", position))
		tamper("moved to another chain", fmt.Sprintf("UPDATE audit_logs SET chain_id = @new, org_id = NULL WHERE chain_id = @org AND position = %d", position), fmt.Sprintf("missing %d", position))
	}
	tamper("two deleted", "DELETE FROM audit_logs WHERE chain_id = @org AND position IN (3, 4)", "missing 3")
	tamper("all deleted", "DELETE FROM audit_logs WHERE chain_id = @org", "missing 1")

	// Another order.
	const swap = "UPDATE audit_logs SET position = -position WHERE chain_id = @org AND position IN (3, 4); UPDATE audit_logs SET position = 7 + position WHERE chain_id = @org AND position < 0;"
	tamper("two change places", swap, "altered 3 4")
	tamper("two change places, and fit there by themselves", swap+fmt.Sprintf(rehash, 3)+fmt.Sprintf(rehash, 4), "unlinked 3 4")
	const relink = "UPDATE audit_logs l SET previous_hash = (SELECT hash FROM audit_logs p WHERE p.chain_id = @org AND p.position = l.position - 1) WHERE chain_id = @org AND position = %d;" + rehash
	link := func(position int) string { return fmt.Sprintf(relink, position, position) }
	tamper("two change places, and are linked anew", swap+link(3)+link(4), "unlinked 5 5") // what follows knows better
	tamper("the last two change places, and are linked anew", strings.NewReplacer("(3, 4)", fmt.Sprintf("(%d, %d)", head-1, head), "7 +", fmt.Sprintf("%d +", 2*head-1)).Replace(swap)+link(head-1)+link(head), fmt.Sprintf("altered %d %d", head, head-1))
	tamper("moved to the end", fmt.Sprintf("UPDATE audit_logs SET position = %d WHERE chain_id = @org AND position = 3", head+1), "missing 3")

	// Rewritten with its hash: the next one, or the head, knows better.
	const rewrite = "UPDATE audit_logs SET owner_id = @nobody WHERE chain_id = @org AND position = %d;" + rehash
	tamper("rewritten with its hash", fmt.Sprintf(rewrite, 4, 4), "unlinked 5 5")
	tamper("rewritten with its hash, and the next one's", fmt.Sprintf(rewrite, 4, 4)+link(5), "unlinked 6 6")
	tamper("the newest one rewritten with its hash", fmt.Sprintf(rewrite, head, head), fmt.Sprintf("altered %d %[1]d", head))
	all := fmt.Sprintf(rewrite, 4, 4)
	for position := 5; position <= head; position++ {
		all += link(position)
	}
	tamper("rewritten, with all that follow", all, fmt.Sprintf("altered %d %[1]d", head))
	// With the head as well, nothing in the database knows better. Who has noted the head's hash does.
	exec(t, w.hub, "BEGIN; SET LOCAL session_replication_role = replica;"+all+"UPDATE audit_chains SET hash = (SELECT hash FROM audit_logs l WHERE (l.chain_id, l.position) = (audit_chains.chain_id, audit_chains.position)) WHERE chain_id = @org")
	if got := get[string](t, w.hub, "SELECT coalesce(broken_how, 'intact') || ' ' || (head_hash = (SELECT hash FROM originals ORDER BY position DESC LIMIT 1))::text FROM verify_audit_chain(@org)"); got != "intact false" {
		t.Errorf("all rewritten, and the head's hash is as before: %s", got)
	}
	exec(t, w.hub, "ROLLBACK")

	// Added.
	add := func(position int) string {
		return anotherEntry("position previous_hash", fmt.Sprint(position), "(SELECT hash FROM audit_chains WHERE chain_id = @org)") + ";" + fmt.Sprintf(rehash, position)
	}
	tamper("added at the end", add(head+1), fmt.Sprintf("added %d new", head+1))
	tamper("added further on", add(head+5), fmt.Sprintf("added %d new", head+5))
	tamper("added at the beginning", add(0), "added 0 new")
	tamper("added, and the head moved", add(head+1)+fmt.Sprintf("UPDATE audit_chains SET position = %d, hash = (SELECT hash FROM audit_logs WHERE chain_id = @org AND position = %[1]d) WHERE chain_id = @org", head+1), "intact") // as good as written
	tamper("put between", fmt.Sprintf("UPDATE audit_logs SET position = -position WHERE chain_id = @org AND position > 4; UPDATE audit_logs SET position = 1 - position WHERE chain_id = @org AND position < 0; UPDATE audit_chains SET position = %d WHERE chain_id = @org;", head+1)+
		anotherEntry("position", "5")+";"+link(5), "altered 6 5")

	// The chain's own row.
	tamper("the head is lowered", fmt.Sprintf("UPDATE audit_chains SET position = %d WHERE chain_id = @org", head-1), fmt.Sprintf("altered %d %[1]d", head-1))
	tamper("the head is lowered, with its hash", fmt.Sprintf("UPDATE audit_chains SET (position, hash) = (SELECT position, hash FROM audit_logs WHERE chain_id = @org AND position = %d) WHERE chain_id = @org", head-1), fmt.Sprintf("added %d %[1]d", head))
	tamper("the head is raised", fmt.Sprintf("UPDATE audit_chains SET position = %d WHERE chain_id = @org", head+1), fmt.Sprintf("missing %d", head+1))
	tamper("the head has another hash", "UPDATE audit_chains SET hash = sha256('x') WHERE chain_id = @org", fmt.Sprintf("altered %d %[1]d", head))
	tamper("the head is gone", "DELETE FROM audit_chains WHERE chain_id = @org", "added 1 1")
	tamper("all is gone but the head", "DELETE FROM audit_logs WHERE chain_id = @org", "missing 1")
	tamper("the anchor is moved", fmt.Sprintf(removeThrough, 2), "added 1 1")
	tamper("the anchor has another hash", "UPDATE audit_chains SET anchor_hash = sha256('x') WHERE chain_id = @org", "unlinked 1 1")
	tamper("behind a false anchor", strings.Replace(fmt.Sprintf(removeThrough, 2), "position = 2)", "position = 1)", 1)+"; DELETE FROM audit_logs WHERE chain_id = @org AND position <= 2", "unlinked 3 3")

	// As a request sees it: with its own rights, its own chain.
	if got := get[string](t, w.app, "SELECT coalesce(broken_how, 'intact') || ' ' || entries FROM verify_audit_chain(audit_chain_of(false))"); got != fmt.Sprintf("intact %d", head) {
		t.Error(got)
	}
	if got := list[int](t, w.app, "SELECT entries FROM verify_audit_chain(@other_org) UNION ALL SELECT entries FROM verify_audit_chain(@platform)"); !slices.Equal(got, []int{0, 0}) {
		t.Errorf("of others' chains: %v", got)
	}
}

// The session and the organisation go; what the log says of them stays, and so do the hashes.
func TestX03_TheChainOutlivesWhatItTellsOf(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, "BEGIN;"+as("owner", "session_id", "@session")+"UPDATE roles SET prompt = 'x'; COMMIT")
	const intact = "SELECT coalesce(broken_how, 'intact') || ' ' || entries || ' ' || count(l.*) || ' ' || count(l.org_id) || ' ' || count(l.session_id) || ' ' || count(l.acting_session_id) FROM verify_audit_chain(@org) v, audit_logs l WHERE l.chain_id = @org GROUP BY broken_how, entries"
	entries := get[int](t, w.hub, "SELECT count(*) FROM audit_logs WHERE chain_id = @org")
	if got := get[string](t, w.hub, intact); got != fmt.Sprintf("intact %d %[1]d %[1]d 2 2", entries) {
		t.Error(got)
	}
	exec(t, w.app, "DELETE FROM sessions WHERE id = @session")
	if got := get[string](t, w.hub, intact); got != fmt.Sprintf("intact %d %[1]d %[1]d 0 2", entries) {
		t.Error(got)
	}
	exec(t, w.app, "UPDATE organizations SET deleted_at = now()")
	for get[int](t, connect(t, w.url), "SELECT purge_organizations(1000)") > 0 {
	}
	if got := get[string](t, w.hub, intact); !strings.HasPrefix(got, "intact ") || !strings.HasSuffix(got, " 0 0 2") {
		t.Error(got)
	}
}

// Many writers ---------------------------------------------------------------------------------------------------------

func TestX03_ManyWritersLeaveOneUnbrokenChain(t *testing.T) {
	t.Parallel()
	const writers, turns = 32, 8
	w := newWorld(t)
	exec(t, w.hub, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = 50', current_database()); END $$")
	// Each writer has accounts of its own, of both organisations and of the platform, and a key and a role: they meet at the chains alone.
	exec(t, w.hub, fmt.Sprintf(`
		INSERT INTO accounts (kind, display_name, home_org_id) SELECT 'human', 'w' || n || '-' || name, id FROM generate_series(1, %d) n, (VALUES ('org', @org::uuid), ('other', @other_org), ('none', NULL)) h(name, id);
		INSERT INTO api_keys (org_id, account_id, name, key_hash) SELECT o, a, 'w' || n, sha256(convert_to('w' || n || o, 'UTF8')) FROM generate_series(1, %[1]d) n, (VALUES (@org::uuid, @owner::uuid), (@other_org, @other_owner)) k(o, a);
		INSERT INTO roles (org_id, name) SELECT @org, 'w' || n FROM generate_series(1, %[1]d) n`, writers))
	const heads = "SELECT string_agg(position::text, ' ' ORDER BY chain_id) FROM audit_chains"
	var before, after [3]int
	if _, err := fmt.Sscan(get[string](t, w.hub, heads), &before[0], &before[1], &before[2]); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	var made [3]int // platform, @org, @other_org
	for n := range writers {
		conn := w.connect(t, "org", "owner")
		exec(t, conn, acting("org", "owner", false, "platform", "'on'"))
		group.Go(func() {
			account := func(home string) string {
				return fmt.Sprintf("UPDATE accounts SET data = jsonb_build_object('n', random()) WHERE display_name = 'w%d-%s';", n+1, home)
			}
			all := []string{account("none"), account("org"), account("other")}
			for turn := range turns {
				var sql string
				var count [3]int
				switch (n + turn) % 4 {
				case 0: // one organisation's, several entries
					sql = fmt.Sprintf("UPDATE roles SET prompt = random()::text WHERE name = 'w%d'; UPDATE api_keys SET tags = ARRAY['t' || %d] WHERE name = 'w%[1]d';", n+1, turn)
					count = [3]int{0, 2, 0}
				case 1: // a long transaction: the chain is not held before its end
					sql = fmt.Sprintf("UPDATE roles SET prompt = random()::text WHERE name = 'w%d'; SELECT pg_sleep(0.005);", n+1)
					count = [3]int{0, 1, 0}
				default: // two organisations' and the platform's, in any order
					order := permutations(3)[(n*turns+turn)%6]
					sql = all[order[0]] + all[order[1]] + all[order[2]]
					count = [3]int{1, 1, 1}
				}
				if _, err := run(t.Context(), conn, "BEGIN;"+sql+"COMMIT"); err != nil {
					t.Errorf("%s: %s", sql, spell(err))
					_, _ = conn.Exec(t.Context(), "ROLLBACK")
					continue
				}
				mu.Lock()
				for i := range made {
					made[i] += count[i]
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if _, err := fmt.Sscan(get[string](t, w.hub, heads), &after[0], &after[1], &after[2]); err != nil {
		t.Fatal(err)
	}
	for i, chain := range []string{"@platform", "@org", "@other_org"} {
		if after[i]-before[i] != made[i] || made[i] == 0 {
			t.Errorf("%s: %d entries of %d changes", chain, after[i]-before[i], made[i])
		}
		if got := get[string](t, w.hub, "SELECT coalesce(broken_how, 'intact') || ' ' || entries FROM verify_audit_chain("+chain+")"); got != fmt.Sprintf("intact %d", after[i]) {
			t.Errorf("%s: %s", chain, got)
		}
		if got := get[int](t, w.hub, "SELECT count(*) FROM (SELECT created_at <= lag(created_at) OVER (ORDER BY position) AS wrong FROM audit_logs WHERE chain_id = "+chain+") l WHERE wrong"); got != 0 {
			t.Errorf("%s: %d entries are no later than the one before", chain, got)
		}
	}
}

// A deactivation writes to the chain of each organisation that the account has keys in.
func TestX03_DeactivationsAcrossOrganisationsDoNotDeadlock(t *testing.T) {
	t.Parallel()
	const writers = 16
	w := newWorld(t)
	exec(t, w.hub, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = 50', current_database()); END $$")
	exec(t, w.hub, fmt.Sprintf(`
		INSERT INTO accounts (kind, display_name, home_org_id) SELECT 'human', 'w' || n, (ARRAY[@org, @other_org, NULL]::uuid[])[1 + n %% 3] FROM generate_series(1, %d) n;
		INSERT INTO organization_members (org_id, account_id) SELECT o.id, a.id FROM accounts a, organizations o WHERE a.display_name ~ '^w[0-9]';
		INSERT INTO api_keys (org_id, account_id, name, key_hash) SELECT m.org_id, m.account_id, 'x', sha256(convert_to(m.org_id::text || m.account_id, 'UTF8'))
		FROM organization_members m JOIN accounts a ON a.id = m.account_id WHERE a.display_name ~ '^w[0-9]' ORDER BY md5(m.org_id::text || m.account_id)`, writers))
	var group sync.WaitGroup
	begin := make(chan struct{})
	for n := range writers {
		conn := w.connect(t, "org", "owner")
		exec(t, conn, acting("org", "owner", false, "platform", "'on'"))
		group.Go(func() {
			<-begin
			if _, err := run(t.Context(), conn, fmt.Sprintf("UPDATE accounts SET status = 'deactivated' WHERE display_name = 'w%d'", n+1)); err != nil {
				t.Error(spell(err))
			}
		})
	}
	close(begin)
	group.Wait()
	if got := get[int](t, w.hub, "SELECT count(*) FROM audit_logs WHERE action = 'key.revoke'"); got != 2*writers {
		t.Errorf("%d keys were revoked", got)
	}
	for _, chain := range []string{"@platform", "@org", "@other_org"} {
		if got := get[string](t, w.hub, "SELECT coalesce(broken_how, 'intact') FROM verify_audit_chain("+chain+")"); got != "intact" {
			t.Errorf("%s: %s", chain, got)
		}
	}
}

// Lists go by the time, so it rises also where the clock does not.
func TestX03_TimesRiseWhateverTheClockDoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, "SET session_replication_role = replica; UPDATE audit_chains SET updated_at = now() + interval '1 hour' WHERE chain_id = @org; SET session_replication_role = origin") // a clock that was put back
	for range 3 {
		exec(t, w.app, "UPDATE roles SET prompt = prompt || 'x'; UPDATE organizations SET name = name || 'x'")
	}
	if got := get[string](t, w.hub, `
		SELECT count(*) FILTER (WHERE later) || ' of ' || count(*) - 1 || ', ' || count(*) FILTER (WHERE created_at > now()) || ' ahead'
		FROM (SELECT created_at, created_at > lag(created_at) OVER (ORDER BY position) AS later FROM audit_logs WHERE chain_id = @org) l`); got != fmt.Sprintf("%d of %[1]d, 9 ahead", get[int](t, w.hub, "SELECT count(*) - 1 FROM audit_logs WHERE chain_id = @org")) {
		t.Errorf("later than the one before: %s", got)
	}
	if got := get[string](t, w.hub, "SELECT coalesce(broken_how, 'intact') FROM verify_audit_chain(@org)"); got != "intact" {
		t.Error(got)
	}
}

// Retention ------------------------------------------------------------------------------------------------------------

// age makes the first entries of a chain older, and the chain fit that.
func age(t testing.TB, w *world, chain string, through int, by string) {
	t.Helper()
	exec(t, w.hub, "BEGIN; SET LOCAL session_replication_role = replica")
	exec(t, w.hub, fmt.Sprintf(`
		DO $$ DECLARE r audit_logs; h bytea := (SELECT anchor_hash FROM audit_chains WHERE chain_id = %s); BEGIN
			FOR r IN SELECT * FROM audit_logs WHERE chain_id = %[1]s ORDER BY position LOOP
				IF r.position <= %d THEN r.created_at := r.created_at - interval '%s'; END IF;
				r.previous_hash := h;
				r.hash := audit_hash(r);
				h := r.hash;
				UPDATE audit_logs SET created_at = r.created_at, previous_hash = r.previous_hash, hash = r.hash WHERE (chain_id, id) = (r.chain_id, r.id);
			END LOOP;
			UPDATE audit_chains SET hash = h WHERE chain_id = %[1]s;
		END $$`, chain, through, by))
	exec(t, w.hub, "COMMIT")
	if got := get[string](t, w.hub, "SELECT coalesce(broken_how, 'intact') FROM verify_audit_chain("+chain+")"); got != "intact" {
		t.Fatalf("aging has broken the chain: %s", got)
	}
}

func TestW09_RetentionRemovesAPrefix(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	nobody := connect(t, w.url)
	const purge = "SELECT purge_audit_logs(2)"
	head := get[int](t, w.hub, "SELECT position FROM audit_chains WHERE chain_id = @org")
	state := func(chain string) string {
		t.Helper()
		return get[string](t, w.hub, "SELECT coalesce(v.broken_how, 'intact') || format(': %s-%s, %s after %s', min(l.position), max(l.position), v.entries, v.anchor_position) FROM verify_audit_chain("+chain+") v, audit_logs l WHERE l.chain_id = "+chain+" GROUP BY v.broken_how, v.entries, v.anchor_position")
	}
	other := state("@other_org")
	age(t, w, "@org", 5, "40 days")
	age(t, w, "@other_org", 2, "40 days")
	if got := get[int](t, nobody, purge); got != 0 {
		t.Errorf("%d are removed though all are kept for ever", got)
	}
	exec(t, w.app, "UPDATE retention_policies SET audit_days = 41")
	if got := get[int](t, nobody, purge); got != 0 {
		t.Errorf("%d younger ones are removed", got)
	}
	exec(t, w.app, "UPDATE retention_policies SET audit_days = 30")
	head += 2 // those two changes
	kept := get[string](t, w.hub, "SELECT hash::text FROM audit_logs WHERE chain_id = @org AND position = 5")
	for i, want := range []struct {
		n     int
		state string
	}{
		{2, fmt.Sprintf("intact: 3-%d, %d after 2", head+1, head-1)}, {2, fmt.Sprintf("intact: 5-%d, %d after 4", head+2, head-2)}, {1, fmt.Sprintf("intact: 6-%d, %d after 5", head+3, head-2)},
		{0, fmt.Sprintf("intact: 6-%d, %d after 5", head+3, head-2)},
	} {
		if got := get[int](t, nobody, purge); got != want.n {
			t.Errorf("batch %d: %d are removed, want %d", i, got, want.n)
		}
		if got := state("@org"); got != want.state {
			t.Errorf("batch %d: %s, want %s", i, got, want.state)
		}
	}
	// It is on record itself, and the anchor is the last that is gone.
	if got := list[string](t, w.hub, "SELECT action || ' ' || actor_source || ' ' || (owner_id = @system)::text || ' ' || changes FROM audit_logs WHERE chain_id = @org ORDER BY position DESC LIMIT 3"); !slices.Equal(got, []string{
		`audit.purge worker true {"entries": {"before": 1}, "anchor_position": {"after": 5, "before": 4}}`,
		`audit.purge worker true {"entries": {"before": 2}, "anchor_position": {"after": 4, "before": 2}}`,
		`audit.purge worker true {"entries": {"before": 2}, "anchor_position": {"after": 2, "before": 0}}`,
	}) {
		t.Errorf("%q", got)
	}
	if got := get[string](t, w.hub, "SELECT anchor_hash::text FROM audit_chains WHERE chain_id = @org"); got != kept {
		t.Errorf("the anchor is %s, want %s", got, kept)
	}
	if got := state("@other_org"); got != other {
		t.Errorf("@other_org's: %s, was %s", got, other)
	}
	// What is behind the anchor is not noticed less than what is before it.
	exec(t, w.hub, "BEGIN; SET LOCAL session_replication_role = replica; CREATE TEMPORARY TABLE originals ON COMMIT DROP AS SELECT * FROM audit_logs WHERE chain_id = @org; UPDATE audit_logs SET position = 3 WHERE chain_id = @org AND position = 6")
	if got := get[string](t, w.hub, verified); got != "added 3 6" {
		t.Error(got)
	}
	exec(t, w.hub, "ROLLBACK; BEGIN; SET LOCAL session_replication_role = replica; CREATE TEMPORARY TABLE originals ON COMMIT DROP AS SELECT * FROM audit_logs WHERE chain_id = @org; DELETE FROM audit_logs WHERE chain_id = @org AND position = 6")
	if got := get[string](t, w.hub, verified); got != "missing 6" {
		t.Error(got)
	}
	exec(t, w.hub, "ROLLBACK")

	// When all of it is old, what is left is the one entry that says so, which is not replaced by another one for ever.
	age(t, w, "@org", 1000, "31 days")
	for range 30 {
		if get[int](t, nobody, purge) == 0 {
			break
		}
	}
	age(t, w, "@org", 1000, "31 days")
	for range 30 {
		if get[int](t, nobody, purge) == 0 {
			break
		}
	}
	if got := get[int](t, nobody, purge); got != 0 {
		t.Errorf("there is always one more to remove: %d", got)
	}
	if got := get[string](t, w.hub, "SELECT coalesce(broken_how, 'intact') FROM verify_audit_chain(@org)"); got != "intact" {
		t.Error(got)
	}
}

// Who writes goes first: retention does not wait for a chain, and another organisation's turn comes.
func TestW09_RetentionWaitsForNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	age(t, w, "@org", 3, "40 days")
	age(t, w, "@other_org", 2, "40 days")
	exec(t, w.hub, "UPDATE retention_policies SET audit_days = 30")
	exec(t, w.app, "BEGIN; UPDATE roles SET prompt = 'x'; SET CONSTRAINTS ALL IMMEDIATE")
	nobody := connect(t, w.url)
	exec(t, nobody, "SET lock_timeout = '5s'")
	if got := get[int](t, nobody, "SELECT purge_audit_logs(1000)"); got != 2 {
		t.Errorf("%d are removed, want @other_org's 2", got)
	}
	if got := get[int](t, nobody, "SELECT purge_audit_logs(1000)"); got != 0 {
		t.Errorf("%d are removed from the chain that is written to", got)
	}
	exec(t, w.app, "COMMIT")
	if got := get[int](t, nobody, "SELECT purge_audit_logs(1000)"); got != 3 {
		t.Errorf("%d are removed afterwards", got)
	}
}

// What goes with an organisation (W12) ---------------------------------------------------------------------------------

// checksums are of all rows, by table and organisation.
func checksums(t testing.TB, hub *pgx.Conn, without string) map[string]string {
	t.Helper()
	var parts []string
	for _, table := range list[string](t, hub, "SELECT name || ' ' || coalesce(tenant, CASE name WHEN 'organizations' THEN 'id' WHEN 'accounts' THEN 'home_org_id' END) FROM tables WHERE tenant IS NOT NULL OR control_plane AND name NOT IN ('encryption_keys', 'secret_rotations')") {
		name, tenant, _ := strings.Cut(table, " ")
		parts = append(parts, fmt.Sprintf("SELECT '%s', %s, md5(string_agg((to_jsonb(r)%s)::text, ' ' ORDER BY to_jsonb(r)::text)) FROM %[1]s r GROUP BY 2", name, tenant, without))
	}
	sums := map[string]string{}
	for _, row := range list[string](t, hub, "SELECT concat_ws(' ', org, name, sum) FROM ("+strings.Join(parts, " UNION ALL ")+") s(name, org, sum)") {
		key, sum, _ := cutLast(row, " ")
		sums[key] = sum
	}
	return sums
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// of are the checksums of one organisation.
func of(sums map[string]string, org string) map[string]string {
	mine := map[string]string{}
	for key, sum := range sums {
		if strings.HasPrefix(key, ids[org]+" ") {
			mine[key] = sum
		}
	}
	return mine
}

func TestW12_ADeletedOrganisationIsPurgedInBatches(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, views)
	exec(t, w.hub, `
		INSERT INTO messages (org_id, session_id, role) SELECT @org, @session, 'user' FROM generate_series(1, 20);
		INSERT INTO parts (org_id, session_id, message_id, type) SELECT org_id, session_id, id, 'text' FROM messages WHERE session_id = @session;
		UPDATE api_keys SET rotated_to_id = @owner_key WHERE id = @key;
		INSERT INTO organization_members (org_id, account_id) VALUES (@other_org, @member)`)
	nobody := connect(t, w.url)
	if got := get[int](t, nobody, "SELECT purge_organizations(3)"); got != 0 {
		t.Fatalf("%d rows are purged though nothing was deleted", got)
	}
	before := checksums(t, w.hub, "")
	exec(t, w.app, "UPDATE organizations SET deleted_at = now()")
	head := get[int](t, w.hub, "SELECT position FROM audit_chains WHERE chain_id = @org")
	rows, batches := 0, 0
	for {
		n := get[int](t, nobody, "SELECT purge_organizations(3)")
		if n == 0 || batches > 1000 {
			break
		}
		if n > 3 {
			t.Errorf("%d rows in a batch of 3", n)
		}
		rows += n
		batches++
	}
	if rows < 50 {
		t.Errorf("%d rows in %d batches", rows, batches)
	}
	after := checksums(t, w.hub, "")
	left := slices.Sorted(maps.Keys(of(after, "org")))
	if want := []string{ids["org"] + " audit_chains", ids["org"] + " audit_logs"}; !slices.Equal(left, want) {
		t.Errorf("left of the organisation: %v", left)
	}
	if got, want := of(after, "other_org"), of(before, "other_org"); !maps.Equal(got, want) {
		t.Errorf("@other_org was touched: %v, was %v", got, want)
	}
	// The accounts stay, and are nobody's.
	if got := get[string](t, w.hub, "SELECT count(*) || ' ' || count(home_org_id) FROM accounts WHERE id IN (@owner, @co_owner, @admin, @member)"); got != "4 0" {
		t.Errorf("accounts, of them with a home: %s", got)
	}
	// The chain says what happened, to the end.
	if got := get[string](t, w.hub, "SELECT coalesce(broken_how, 'intact') FROM verify_audit_chain(@org)"); got != "intact" {
		t.Error(got)
	}
	if got := get[string](t, w.hub, fmt.Sprintf("SELECT string_agg(DISTINCT action, ' ' ORDER BY action) || ', ' || string_agg(DISTINCT actor_source || owner_id::text, ' ') || ', ' || count(org_id) FROM audit_logs WHERE chain_id = @org AND position > %d", head)); got != "account.update client.delete key.delete member.delete organization.purge role.delete secret.delete, worker"+ids["system"]+", 0" {
		t.Errorf("on record: %s", got)
	}
	// Its slug is free again.
	exec(t, w.hub, "BEGIN; SET CONSTRAINTS ALL DEFERRED;"+fmt.Sprintf(newOrganization, "@new, 'one', 'x', @owner")+"; COMMIT")
	if got := get[int](t, nobody, "SELECT purge_organizations(3)"); got != 0 {
		t.Errorf("%d rows of the new one are purged", got)
	}
}

func TestW12_PurgingBlocksNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, "UPDATE organizations SET deleted_at = now()")
	worker, second := connect(t, w.url), connect(t, w.url)
	other := w.connect(t, "other_org", "other_owner")
	for _, conn := range []*pgx.Conn{second, other} {
		exec(t, conn, "SET lock_timeout = '5s'")
	}
	for { // each batch is held open while the others work
		exec(t, worker, "BEGIN")
		n := get[int](t, worker, "SELECT purge_organizations(1)")
		exec(t, worker, "SET CONSTRAINTS ALL IMMEDIATE")
		if n == 0 {
			exec(t, worker, "COMMIT")
			break
		}
		if got := get[int](t, second, "SELECT purge_organizations(1)"); got != 0 {
			t.Errorf("another worker purges %d rows beside it", got)
		}
		for _, sql := range []string{
			"INSERT INTO messages (org_id, session_id, role) VALUES (@other_org, @other_session, 'user')", "UPDATE roles SET prompt = prompt || 'x'", "UPDATE organizations SET name = name || 'x'",
			"INSERT INTO api_keys (org_id, account_id, name, key_hash) VALUES (@other_org, @other_owner, 'x', sha256(uuid_send(gen_random_uuid())))", "INSERT INTO projects (org_id, slug, name) VALUES (@other_org, gen_random_uuid()::text, 'x')",
		} {
			if tag, err := run(t.Context(), other, sql); err != nil || tag.RowsAffected() == 0 {
				t.Fatalf("%s: %s %v", sql, tag, err)
			}
		}
		exec(t, worker, "COMMIT")
	}
	if got := get[int](t, w.hub, "SELECT count(*) FROM organizations"); got != 1 {
		t.Errorf("%d organisations", got)
	}
	// Two at once go to two workers.
	exec(t, w.hub, "UPDATE organizations SET deleted_at = now(); BEGIN; SET CONSTRAINTS ALL DEFERRED;"+fmt.Sprintf(newOrganization, "@new, 'new', 'x', @owner")+"; UPDATE organizations SET deleted_at = now() WHERE id = @new; COMMIT")
	exec(t, worker, "BEGIN")
	if one, two := get[int](t, worker, "SELECT purge_organizations(1)"), get[int](t, second, "SELECT purge_organizations(1)"); one != 1 || two != 1 {
		t.Errorf("%d and %d", one, two)
	}
	exec(t, worker, "COMMIT")
}
