package sql_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

const servicesFixture = `
INSERT INTO client_types (type, schema_version, schema) VALUES ('http-api', 1, '{}'), ('http-api', 2, '{"title": "HTTP API"}'), ('webhook', 1, '{}');
INSERT INTO clients (org_id, id, type, schema_version, name, valid, validated_at) VALUES
	(@org, @client, 'http-api', 1, 'main', true, now()), (@org, @second_client, 'http-api', 1, 'second', false, NULL), (@other_org, @other_client, 'webhook', 1, 'other', true, now());
INSERT INTO encryption_keys (version, fingerprint) VALUES (1, sha256('1')), (2, sha256('2')), (3, sha256('3'));
INSERT INTO client_secrets (org_id, id, client_id, name, key_version, ciphertext) VALUES
	(@org, @secret, @client, 'token', 1, sha256('a')), (@other_org, @other_secret, @other_client, 'token', 2, sha256('b'));
INSERT INTO secret_rotations (id, target_version, total, status, ended_at) VALUES (@rotation, 3, 2, 'running', NULL), (@ended_rotation, 1, 2, 'completed', now());`

const newSecret = "INSERT INTO client_secrets (org_id, client_id, name, key_version, ciphertext) VALUES "

var servicesRules = []ruleCase{
	{rule: "client_types_pkey", hub: true, sql: "INSERT INTO client_types (type, schema_version, schema) VALUES ('http-api', ??, '{}')", bad: []string{"1", "2"}, good: []string{"3"}},
	{
		rule: "client_types_type_shape_check", hub: true, sql: "INSERT INTO client_types (type, schema_version, schema) VALUES (??, 1, '{}')",
		bad: []string{"''", "'A'", "'1a'", "'-a'", "'a-'", "'a--b'", "'a_b'", "repeat('a', 101)"}, good: []string{"'a'", "'llm-provider-v2'", "repeat('a', 100)"},
	},
	{rule: "client_types_schema_version_check", hub: true, sql: "INSERT INTO client_types (type, schema_version, schema) VALUES ('new', ??, '{}')", bad: []string{"0", "-1"}, good: []string{"1"}},
	{rule: "client_types_schema_object_check", hub: true, sql: "INSERT INTO client_types (type, schema_version, schema) VALUES ('new', 1, ??)", bad: notObjects, good: objects},
	{
		rule: "client_types_schema_frozen", sql: "SELECT register_client_types(??)",
		bad: []string{`'{http-api}', '{1}', '{"{\"required\": [\"x\"]}"}'`, `'{new,http-api}', '{1,2}', '{"{}","{}"}'`}, good: []string{`'{http-api}', '{1}', '{"{}"}'`, `'{http-api}', '{3}', '{"{}"}'`, "'{}', '{}', '{}'"},
	},

	{rule: "clients_tenant", sql: "INSERT INTO clients (org_id, type, schema_version, name) VALUES (??, 'http-api', 1, 'x')", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{rule: "clients_pkey", sql: "INSERT INTO clients (org_id, id, type, schema_version, name) VALUES (@org, ??, 'http-api', 1, 'x')", bad: []string{"@client"}, good: []string{"@new", "@other_client"}},
	{rule: "clients_id_version_check", sql: "INSERT INTO clients (org_id, id, type, schema_version, name) VALUES (@org, ??, 'http-api', 1, 'x')", bad: notUUIDv7, good: uuidv7},
	{rule: "clients_name_key", sql: "INSERT INTO clients (org_id, type, schema_version, name) VALUES (@org, 'http-api', 1, ??)", bad: []string{"'main'"}, good: []string{"'other'"}},
	{rule: "clients_org_id_fkey", hub: true, sql: "INSERT INTO clients (org_id, type, schema_version, name) VALUES (??, 'http-api', 1, 'x')", bad: []string{"@new"}, good: []string{"@org", "@other_org"}},
	{
		rule: "clients_org_id_fkey_in_use", hub: true, before: "DELETE FROM calls; DELETE FROM spokes; DELETE FROM sessions; DELETE FROM tasks; DELETE FROM projects; DELETE FROM roles; DELETE FROM clients WHERE org_id = @other_org",
		sql: "DELETE FROM organizations WHERE id = ??", bad: []string{"@org"}, good: []string{"@other_org"},
	},
	// C12: there is no client of a type, or of a version of its schema, that nobody has registered.
	{rule: "clients_type_fkey", sql: "INSERT INTO clients (org_id, type, schema_version, name) VALUES (@org, ??, 'x')", bad: []string{"'nonsense', 1", "'http-api', 3", "'webhook', 2"}, good: []string{"'http-api', 1", "'http-api', 2", "'webhook', 1"}},
	{rule: "clients_type_fkey_in_use", hub: true, sql: "DELETE FROM client_types WHERE ??", bad: []string{"type = 'webhook'", "(type, schema_version) = ('http-api', 1)"}, good: []string{"(type, schema_version) = ('http-api', 2)"}},
	{rule: "clients_name_shape_check", sql: "UPDATE clients SET name = ?? WHERE id = @client", bad: notSlugs, good: slugs},
	{rule: "clients_description_length_check", sql: "UPDATE clients SET description = ?? WHERE id = @client", bad: []string{"repeat('ä', 10001)"}, good: []string{"''", "repeat('ä', 10000)"}},
	{rule: "clients_config_object_check", sql: "UPDATE clients SET config = ?? WHERE id = @client", bad: notObjects, good: objects},
	{rule: "clients_valid_is_validated_check", sql: "UPDATE clients SET valid = true, validated_at = ?? WHERE id = @second_client", bad: []string{"NULL"}, good: []string{"now()"}},
	{rule: "clients_metadata_check", sql: "UPDATE clients SET metadata = ?? WHERE id = @client", bad: notMetadata, good: metadata},
	{
		rule: "clients_identity_immutable", sql: "UPDATE clients SET ?? WHERE id = @client",
		bad: []string{"id = @new", "org_id = @other_org", "type = 'webhook'", "created_at = created_at - interval '1 hour'"}, good: []string{"name = 'x', enabled = false", "schema_version = 2", "type = 'http-api'"},
	},

	{rule: "encryption_keys_pkey", hub: true, sql: "INSERT INTO encryption_keys (version, fingerprint) VALUES (??, sha256('x'))", bad: []string{"1"}, good: []string{"4"}},
	{rule: "encryption_keys_fingerprint_key", hub: true, sql: "INSERT INTO encryption_keys (version, fingerprint) VALUES (4, sha256(??))", bad: []string{"'1'"}, good: []string{"'x'"}},
	{rule: "encryption_keys_version_check", hub: true, sql: "INSERT INTO encryption_keys (version, fingerprint) VALUES (??, sha256('x'))", bad: []string{"0", "-1"}, good: []string{"4"}},
	{rule: "encryption_keys_fingerprint_length_check", hub: true, sql: "INSERT INTO encryption_keys (version, fingerprint) VALUES (4, ??)", bad: []string{"''", "sha224('x')", "sha512('x')"}, good: []string{"sha256('x')"}},
	// C11: a wrong key under a known version.
	{
		rule: "encryption_keys_fingerprint_known", hub: true, sql: "SELECT register_encryption_keys(??)",
		bad:  []string{"'{1}', ARRAY[sha256('x')]", "'{4,2}', ARRAY[sha256('4'), sha256('x')]", "'{1}', ARRAY[sha256('2')]"},
		good: []string{"'{1}', ARRAY[sha256('1')]", "'{4,2}', ARRAY[sha256('4'), sha256('2')]", "'{}', '{}'"},
	},

	// X01: somebody who is signed in takes part in the platform's business as its admin only.
	{rule: "encryption_keys_for_admins", state: "42501", sql: "SELECT set_config('hub.platform', ??, true), start_secret_rotation(3)", bad: []string{"''", "'off'"}, good: []string{"'on'"}},
	{rule: "encryption_keys_for_admins", state: "42501", sql: "SELECT set_config('hub.platform', ??, true), remove_encryption_key(9)", bad: []string{"''"}, good: []string{"'on'"}},
	{rule: "encryption_keys_for_admins", state: "42501", sql: "SELECT set_config('hub.platform', ??, true), register_encryption_keys('{}', '{}')", bad: []string{"''"}, good: []string{"'on'"}},

	{rule: "client_secrets_tenant", sql: newSecret + "(??, 'x', 1, sha256('x'))", bad: []string{"@other_org, @other_client", "@new, @client"}, good: []string{"@org, @client"}},
	{rule: "client_secrets_pkey", sql: "INSERT INTO client_secrets (org_id, id, client_id, name, key_version, ciphertext) VALUES (@org, ??, @client, 'x', 1, sha256('x'))", bad: []string{"@secret"}, good: []string{"@new", "@other_secret"}},
	{rule: "client_secrets_id_version_check", sql: "INSERT INTO client_secrets (org_id, id, client_id, name, key_version, ciphertext) VALUES (@org, ??, @client, 'x', 1, sha256('x'))", bad: notUUIDv7, good: uuidv7},
	{rule: "client_secrets_name_key", sql: newSecret + "(@org, ??, 1, sha256('x'))", bad: []string{"@client, 'token'"}, good: []string{"@client, 'Token'", "@second_client, 'token'"}},
	// X01: another organisation's client does not fit.
	{rule: "client_secrets_client_id_fkey", sql: newSecret + "(@org, ??, 'x', 1, sha256('x'))", bad: []string{"@other_client", "@new"}, good: []string{"@client"}},
	{rule: "client_secrets_key_version_fkey", sql: newSecret + "(@org, @client, 'x', ??, sha256('x'))", bad: []string{"4", "0"}, good: []string{"1", "3"}},
	// C11: a version in use cannot be removed.
	{rule: "client_secrets_key_version_fkey_in_use", hub: true, sql: "SELECT remove_encryption_key(??)", bad: []string{"1", "2"}, good: []string{"3", "4"}},
	{rule: "client_secrets_key_version_fkey_in_use", hub: true, sql: "DELETE FROM encryption_keys WHERE version = ??", bad: []string{"1", "2"}, good: []string{"3"}},
	{
		rule: "client_secrets_name_shape_check", sql: newSecret + "(@org, @client, ??, 1, sha256('x'))",
		bad: []string{"''", "'a b'", "'a/b'", "'.a'", "'-a'", "'ä'", "E'a\\n'", "repeat('a', 101)"}, good: []string{"'a'", "'API_KEY'", "'_a.b-c'", "'1'", "repeat('a', 100)"},
	},
	{
		rule: "client_secrets_ciphertext_length_check", sql: "UPDATE client_secrets SET ciphertext = decode(repeat('00', ??), 'hex') WHERE id = @secret",
		bad: []string{"0", "29", "65566"}, good: []string{"30", "65565"},
	},
	{rule: "client_secrets_metadata_check", sql: "UPDATE client_secrets SET metadata = ?? WHERE id = @secret", bad: notMetadata, good: metadata},
	{
		// C11: the name is part of what the ciphertext is bound to.
		rule: "client_secrets_identity_immutable", hub: true, sql: "UPDATE client_secrets SET ?? WHERE id = @secret",
		bad:  []string{"id = @new", "org_id = @other_org", "client_id = @second_client", "name = 'x'", "created_at = created_at - interval '1 hour'"},
		good: []string{"key_version = 2, ciphertext = sha256('x')", "name = 'token'"},
	},

	{rule: "secret_rotations_pkey", hub: true, sql: "INSERT INTO secret_rotations (id, target_version, total, status, ended_at) VALUES (??, 1, 0, 'completed', now())", bad: []string{"@rotation"}, good: []string{"@new"}},
	{rule: "secret_rotations_id_version_check", hub: true, sql: "INSERT INTO secret_rotations (id, target_version, total, status, ended_at) VALUES (??, 1, 0, 'completed', now())", bad: notUUIDv7, good: uuidv7},
	{rule: "secret_rotations_target_version_fkey", hub: true, sql: "INSERT INTO secret_rotations (target_version, total, status, ended_at) VALUES (??, 0, 'completed', now())", bad: []string{"4"}, good: []string{"3"}},
	{rule: "secret_rotations_status_check", hub: true, sql: "UPDATE secret_rotations SET status = ??, ended_at = now() WHERE id = @rotation", bad: []string{"'failed'", "''"}, good: []string{"'completed'", "'superseded'"}},
	{rule: "secret_rotations_ended_has_time_check", hub: true, sql: "UPDATE secret_rotations SET ?? WHERE id = @rotation", bad: []string{"status = 'completed'", "ended_at = now()"}, good: []string{"status = 'completed', ended_at = now()"}},
	{rule: "secret_rotations_counts_check", hub: true, sql: "UPDATE secret_rotations SET ?? WHERE id = @rotation", bad: []string{"total = -1", "rotated = -1", "failed = -1"}, good: []string{"total = 0", "rotated = 1", "failed = 1"}},
	{rule: "secret_rotations_running_key", hub: true, sql: "INSERT INTO secret_rotations (target_version, total, status, ended_at) VALUES (1, 0, ??)", bad: []string{"'running', NULL"}, good: []string{"'superseded', now()"}},
	{rule: "secret_rotations_ended_fixed", hub: true, sql: "UPDATE secret_rotations SET rotated = 1 WHERE id = ??", bad: []string{"@ended_rotation"}, good: []string{"@rotation"}},
}

var servicesDeletes = []deleteCase{
	{fk: "client_secrets_client_id_fkey", delete: "DELETE FROM clients WHERE id = @client", gone: "SELECT NOT EXISTS (SELECT FROM client_secrets WHERE id = @secret)"},
	{fk: "secret_rotations_target_version_fkey", delete: "DELETE FROM encryption_keys WHERE version = 3", gone: "SELECT NOT EXISTS (SELECT FROM secret_rotations WHERE id = @rotation)"},
}

func TestX02_ServicesRules(t *testing.T) {
	t.Parallel()
	checkRules(t, servicesRules)
}

func TestC14_ServicesDeletes(t *testing.T) {
	t.Parallel()
	checkDeletes(t, servicesDeletes)
}

// What a request, or whoever has the application's login, can do to what belongs to the platform: read it.
func TestC11_KeysAndRotationsAreReadOnlyToRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, sql := range []string{
		"INSERT INTO encryption_keys (version, fingerprint) VALUES (9, sha256('9'))", "UPDATE encryption_keys SET fingerprint = sha256('9')", "DELETE FROM encryption_keys WHERE version = 3",
		"INSERT INTO secret_rotations (target_version, total) VALUES (3, 0)", "UPDATE secret_rotations SET rotated = 9", "DELETE FROM secret_rotations",
		"INSERT INTO client_types (type, schema_version, schema) VALUES ('x', 1, '{}')", "UPDATE client_types SET schema = '{}'", "DELETE FROM client_types",
		"UPDATE client_secrets SET name = 'x'", "UPDATE client_secrets SET client_id = @second_client",
	} {
		_, err := attempt(t, w.app, "", sql)
		refuses(t, err, "42501", "")
	}
	const see = "SELECT (SELECT count(*) FROM encryption_keys) || ' ' || (SELECT count(*) FROM secret_rotations) || ' ' || (SELECT count(*) FROM client_types) || ' ' || count_secrets_under(1) || ' ' || (SELECT count(*) FROM orgs_with_clients())"
	exec(t, w.app, "BEGIN")
	for _, c := range []struct{ platform, want string }{{"''", "0 0 3 0 0"}, {"'on'", "3 2 3 1 0"}} {
		exec(t, w.app, "SELECT set_config('hub.platform', "+c.platform+", true)")
		if got := get[string](t, w.app, see); got != c.want {
			t.Errorf("with platform %s: %s, want %s", c.platform, got, c.want)
		}
	}
	exec(t, w.app, "ROLLBACK")
	if got := get[string](t, connect(t, w.url), see); got != "3 2 3 1 2" { // the hub itself
		t.Error(got)
	}
}

// Whoever writes a config past the API has it judged before it counts as valid.
func TestC12_AConfigThatNobodyJudgedIsNotValid(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	valid := func() bool { return get[bool](t, w.app, "SELECT valid FROM clients WHERE id = @client") }
	exec(t, w.app, "UPDATE clients SET description = 'x', config = '{}' WHERE id = @client")
	if !valid() {
		t.Error("nothing of the config has changed")
	}
	exec(t, w.app, `UPDATE clients SET config = '{"a": 1.0}', validated_at = clock_timestamp() WHERE id = @client`)
	if !valid() {
		t.Error("the config came with a verdict")
	}
	exec(t, w.app, `UPDATE clients SET config = '{"a": 1.00}' WHERE id = @client`)
	if valid() {
		t.Error("the config came without a verdict")
	}
	if get[bool](t, w.app, "WITH c AS (INSERT INTO clients (org_id, type, schema_version, name) VALUES (@org, 'http-api', 1, 'new') RETURNING valid) SELECT valid FROM c") {
		t.Error("nobody has judged a new one")
	}
}

// Another key is no new revision; another value is, and so is other metadata.
func TestC11_AnotherKeyIsNoNewRevision(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		set       string
		revisions int
	}{
		{"key_version = 2, ciphertext = sha256('x')", 0},
		{"ciphertext = sha256('y'), value_changed_at = clock_timestamp()", 1},
		{"ciphertext = sha256('z')", 1}, // under the same key it is another value, whoever forgets to say so
		{`metadata = '{"_a": {}}'`, 1},
		{"ciphertext = ciphertext", 0},
	} {
		before := get[int](t, w.app, "SELECT revision FROM client_secrets WHERE id = @secret")
		moved := get[bool](t, w.app, "WITH o AS (SELECT updated_at FROM client_secrets WHERE id = @secret), n AS (UPDATE client_secrets SET "+c.set+" WHERE id = @secret RETURNING updated_at) SELECT n.updated_at > o.updated_at FROM n, o")
		if got := get[int](t, w.app, "SELECT revision FROM client_secrets WHERE id = @secret") - before; got != c.revisions || moved != !strings.HasSuffix(c.set, "= ciphertext") {
			t.Errorf("SET %s: %d revisions, updated_at moved: %v", c.set, got, moved)
		}
	}
}

// Who starts a rotation gets the one that is running, unless it goes to another key.
func TestC11_ThereIsOneRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	nobody := connect(t, w.url) // as the hub itself works
	const start = "SELECT start_secret_rotation(%d)::text"
	if got := get[string](t, nobody, fmt.Sprintf(start, 3)); got != ids["rotation"] {
		t.Errorf("started %s beside the running one", got)
	}
	other := get[string](t, nobody, fmt.Sprintf(start, 2))
	if got := get[string](t, w.hub, "SELECT status FROM secret_rotations WHERE id = @rotation"); other == ids["rotation"] || got != "superseded" {
		t.Errorf("the other one is %s", got)
	}
	if got := get[string](t, nobody, "SELECT status || ' ' || total || ' ' || rotated FROM secret_rotations WHERE id = '"+other+"'"); got != "running 1 0" {
		t.Errorf("status, total, rotated: %s", got)
	}
	// It counts, and is complete when no more is left than what cannot be decrypted.
	exec(t, nobody, "SELECT advance_secret_rotation('"+other+"', 5)")
	if get[bool](t, nobody, "SELECT complete_secret_rotation('"+other+"', 0)") {
		t.Error("complete, and there is a secret left")
	}
	if !get[bool](t, nobody, "SELECT complete_secret_rotation('"+other+"', 1)") {
		t.Error("not complete")
	}
	exec(t, nobody, "SELECT advance_secret_rotation('"+other+"', 5)")
	if got := get[string](t, nobody, "SELECT status || ' ' || rotated || ' ' || failed FROM secret_rotations WHERE id = '"+other+"'"); got != "completed 5 1" {
		t.Errorf("status, rotated, failed: %s", got)
	}
	_, err := attempt(t, nobody, "", fmt.Sprintf(start, 9))
	refuses(t, err, "23503", "secret_rotations_target_version_fkey")

	var group sync.WaitGroup
	started := make([]string, 8)
	for i := range started {
		conn := connect(t, w.url)
		group.Go(func() {
			if err := conn.QueryRow(t.Context(), fmt.Sprintf(start, 3)).Scan(&started[i]); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, id := range started {
		if id != started[0] {
			t.Errorf("several at once start several: %v", started)
		}
	}
}

// The sweep is told where there is work, and no more than that.
func TestC11_WhereThereIsWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	nobody := connect(t, w.url) // as the hub itself works
	const where = "SELECT coalesce(string_agg(o::text, ' '), '') FROM orgs_with_secrets_under(%d) o"
	for version, want := range map[int]string{1: ids["org"], 2: ids["other_org"], 3: ""} {
		if got := get[string](t, nobody, fmt.Sprintf(where, version)); got != want {
			t.Errorf("under %d: %q, want %q", version, got, want)
		}
	}
	if got := get[string](t, nobody, "SELECT string_agg(count_secrets_under(v)::text, ' ' ORDER BY v) FROM generate_series(1, 3) v"); got != "1 1 0" {
		t.Error(got)
	}
	if got := get[int](t, nobody, "SELECT count(*) FROM orgs_with_clients()"); got != 2 {
		t.Error(got)
	}
	exec(t, w.hub, "SET ROLE hub_system")
	_, err := attempt(t, w.hub, "", "SELECT ciphertext FROM client_secrets")
	refuses(t, err, "42501", "")
	if got := get[int](t, w.hub, "SELECT count(key_version) FROM client_secrets"); got != 2 {
		t.Error(got)
	}
}

// Several hubs that start at once, with one set of keys and types.
func TestC11_ReplicasRegisterAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var group sync.WaitGroup
	for i := range 8 {
		conn := connect(t, w.url)
		group.Go(func() {
			order := []string{"4,5,6", "6,4,5"}[i%2]
			for _, sql := range []string{
				fmt.Sprintf("SELECT register_encryption_keys(ARRAY[%s], (SELECT array_agg(sha256(convert_to(v::text, 'UTF8')) ORDER BY n) FROM unnest(ARRAY[%[1]s]) WITH ORDINALITY u(v, n)))", order),
				fmt.Sprintf("SELECT register_client_types((SELECT array_agg('t' || v) FROM unnest(ARRAY[%s]) v), '{1,1,1}', '{\"{}\",\"{}\",\"{}\"}')", order),
			} {
				if _, err := conn.Exec(t.Context(), sql); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if got := get[string](t, connect(t, w.url), "SELECT (SELECT count(*) FROM encryption_keys) || ' ' || (SELECT count(*) FROM client_types)"); got != "6 6" {
		t.Error(got)
	}
}
