package sql_test

import (
	"fmt"
	"testing"
)

// Ids (C02) ------------------------------------------------------------------------------------------------------------

func TestC02_AUUIDv7HasItsParts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if got := get[string](t, w.app, `
		SELECT concat_ws(' ', count(*), count(DISTINCT id), bool_and(is_uuidv7(id)),
			bool_and(substr(id::text, 15, 1) = '7'), bool_and(substr(id::text, 20, 1) IN ('8', '9', 'a', 'b')))
		FROM (SELECT hub_uuidv7() AS id FROM generate_series(1, 10000)) i`); got != "10000 10000 t t t" {
		t.Errorf("ids, distinct, is_uuidv7, version, variant: %s", got)
	}
	// In the order of time, within one statement too, and of no other time than now.
	exec(t, w.app, `
		CREATE TEMPORARY TABLE made (n bigint GENERATED ALWAYS AS IDENTITY, before timestamptz, id uuid, after timestamptz);
		INSERT INTO made (before, id, after) SELECT clock_timestamp(), hub_uuidv7(), clock_timestamp() FROM generate_series(1, 5000)`)
	if got := get[int](t, w.app, "SELECT count(*) FROM (SELECT hub_uuidv7_clock(id) < lag(hub_uuidv7_clock(id)) OVER (ORDER BY n) AS wrong FROM made) m WHERE wrong"); got != 0 {
		t.Errorf("%d ids are older than the one before", got)
	}
	if got := get[int](t, w.app, `
		SELECT count(*) FROM made WHERE hub_uuidv7_clock(id) NOT BETWEEN floor(extract(epoch FROM before) * 4096000) AND ceil(extract(epoch FROM after) * 4096000)`); got != 0 {
		t.Errorf("%d ids are of another time", got)
	}
	// RFC 9562: 48 bits of milliseconds come first, and here 12 bits of their fraction after the version.
	if got := get[int](t, w.app, `
		SELECT count(*) FROM made
		WHERE ('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint NOT BETWEEN floor(extract(epoch FROM before) * 1000) AND ceil(extract(epoch FROM after) * 1000)`); got != 0 {
		t.Errorf("the milliseconds of %d ids are of another time", got)
	}
	if got := get[int](t, w.app, "SELECT count(DISTINCT substr(id::text, 16, 3)) FROM made"); got < 100 {
		t.Errorf("only %d different fractions of a millisecond", got)
	}
}

func TestC02_AUUIDv7OfAClock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for clock, want := range map[string]string{
		"0":                            "00000000-0000-7000-",
		"4095":                         "00000000-0000-7fff-",
		"4096":                         "00000000-0001-7000-",
		"1645557742000::bigint * 4096": "017f22e2-79b0-7000-", // the example of RFC 9562, A.6
		"1152921504606846975":          "ffffffff-ffff-7fff-",
	} {
		if got := get[string](t, w.app, "SELECT left(hub_uuidv7_at("+clock+")::text, 19)"); got != want {
			t.Errorf("%s: %s, want %s", clock, got, want)
		}
		if got := get[string](t, w.app, fmt.Sprintf("SELECT (hub_uuidv7_clock(hub_uuidv7_at(%s)) - %[1]s)::text", clock)); got != "0" {
			t.Errorf("%s: differs by %s when read back", clock, got)
		}
	}
	// The other 62 bits are random.
	if got := get[string](t, w.app, `
		SELECT concat_ws(' ', count(DISTINCT id), to_hex(bit_or(get_byte(b, 8)) & 63), to_hex(bit_and(get_byte(b, 8)) & 63), to_hex(bit_or(get_byte(b, 15))), to_hex(bit_and(get_byte(b, 15))))
		FROM (SELECT id, uuid_send(id) AS b FROM (SELECT hub_uuidv7_at(7) AS id FROM generate_series(1, 1000)) i) i`); got != "1000 3f 0 ff 0" {
		t.Error(got)
	}
}

func TestC02_TheNextUUIDv7(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, floor := range []string{
		"00000000-0000-7000-8000-000000000000", "00000000-0000-7fff-bfff-ffffffffffff", "ffffffff-0000-7000-8000-000000000000", "ffffffff-0000-7fff-bfff-ffffffffffff",
		"ffffffff-ffff-7ffe-bfff-ffffffffffff",
	} {
		if !get[bool](t, w.app, fmt.Sprintf("SELECT bool_and(id > '%s' AND is_uuidv7(id)) FROM (SELECT hub_uuidv7_after('%[1]s') AS id FROM generate_series(1, 100)) i", floor)) {
			t.Errorf("not above %s", floor)
		}
	}
	if !get[bool](t, w.app, "SELECT hub_uuidv7_clock(hub_uuidv7_after(@zero)) >= hub_uuidv7_clock(hub_uuidv7()) - 4096000") {
		t.Error("a low floor does not hold the clock back")
	}
}

// The caller (X01) -----------------------------------------------------------------------------------------------------

func TestX01_ALocalSettingLeavesNobodyBehind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	conn := connect(t, w.url)
	for _, name := range []string{"org", "account", "key", "session"} {
		who := fmt.Sprintf("SELECT current_%s_id()::text", name)
		if got := get[*string](t, conn, who); got != nil {
			t.Errorf("%s is %s at the start", name, *got)
		}
		exec(t, conn, fmt.Sprintf("BEGIN; SELECT set_config('hub.%s_id', @org, true)", name))
		if got := get[string](t, conn, who); got != ids["org"] {
			t.Errorf("%s is %s", name, got)
		}
		exec(t, conn, "COMMIT")
		if got := get[*string](t, conn, who); got != nil { // the setting is '' now
			t.Errorf("%s is %s afterwards", name, *got)
		}
	}
}

// What the other settings mean, above all when they are not set, or to something that nobody knows: nothing.
func TestX01_SettingsThatAreNotSetAllowNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	conn := connect(t, w.url)
	for _, c := range []struct{ setting, value, sql, want string }{
		{"key_scopes", "", "SELECT current_key_scopes()::text", "{}"},
		{"key_scopes", "keys:write projects:read", "SELECT current_key_scopes()::text", "{keys:write,projects:read}"},
		{"project_ids", "", "SELECT coalesce(current_project_ids()::text, 'not limited')", "not limited"},
		{"project_ids", "{}", "SELECT coalesce(current_project_ids()::text, 'not limited')", "{}"},
		{"project_ids", "{" + ids["project"] + "," + ids["new"] + "}", "SELECT current_project_ids()::text", "{" + ids["project"] + "," + ids["new"] + "}"},
		{"membership_level", "", "SELECT current_membership_rank()::text", "0"},
		{"membership_level", "member", "SELECT current_membership_rank()::text", "1"},
		{"membership_level", "admin", "SELECT current_membership_rank()::text", "2"},
		{"membership_level", "owner", "SELECT current_membership_rank()::text", "3"},
		{"membership_level", "root", "SELECT current_membership_rank()::text", "0"},
		{"platform", "", "SELECT is_platform_admin()::text", "false"},
		{"platform", "on", "SELECT is_platform_admin()::text", "true"},
		{"platform", "true", "SELECT is_platform_admin()::text", "false"},
	} {
		if c.value == "" { // before it was ever set, too
			if got := get[string](t, conn, c.sql); got != c.want {
				t.Errorf("%s, not set: %s, want %s", c.setting, got, c.want)
			}
		}
		exec(t, conn, "BEGIN; SELECT set_config('hub."+c.setting+"', '"+c.value+"', true)")
		if got := get[string](t, conn, c.sql); got != c.want {
			t.Errorf("%s is %q: %s, want %s", c.setting, c.value, got, c.want)
		}
		exec(t, conn, "ROLLBACK")
	}
}

// Rules (X02) ----------------------------------------------------------------------------------------------------------

func TestX02_RaiseRule(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := attempt(t, w.app, "", "SELECT raise_rule('some_rule', 'A sentence with 100 % of its characters.')")
	refuses(t, err, "23514", "some_rule")
	_, err = attempt(t, w.app, "", "SELECT raise_rule('some_rule', 'x', '42501')")
	refuses(t, err, "42501", "some_rule")
}

// What an append-only table will be like.
func TestX03_AppendOnlyTables(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const tables = `
		CREATE TABLE chains (org_id uuid NOT NULL, id uuid NOT NULL, PRIMARY KEY (org_id, id));
		CREATE TABLE entries (
			org_id uuid NOT NULL, id integer NOT NULL, chain_id uuid NOT NULL, account_id uuid, note text,
			PRIMARY KEY (org_id, id),
			FOREIGN KEY (org_id, chain_id) REFERENCES chains (org_id, id) ON DELETE CASCADE,
			FOREIGN KEY (account_id) REFERENCES accounts (id) ON DELETE SET NULL);
		CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE ON entries
			FOR EACH ROW EXECUTE FUNCTION refuse_unless_cascade('chains', 'org_id', 'chain_id', 'account_id');
		CREATE TABLE fixed (id integer NOT NULL);
		CREATE TRIGGER fixed_append_only BEFORE UPDATE OR DELETE ON fixed FOR EACH ROW EXECUTE FUNCTION refuse_unless_cascade();
		INSERT INTO fixed VALUES (1);
		INSERT INTO chains VALUES (@org, @new), (@org, @high);
		INSERT INTO entries VALUES (@org, 1, @new, @nobody, 'a'), (@org, 2, @high, @member, 'b');`
	for _, c := range []struct {
		sql, refusal string
	}{
		{"DELETE FROM entries WHERE id = 1", "entries_append_only"},
		{"DELETE FROM chains WHERE id = @new", ""},
		{"UPDATE entries SET note = 'x' WHERE id = 1", "entries_append_only"},
		{"UPDATE entries SET note = NULL WHERE id = 1", "entries_append_only"},
		{"UPDATE entries SET note = 'x', account_id = NULL WHERE id = 1", "entries_append_only"},
		{"UPDATE entries SET account_id = @owner WHERE id = 1", "entries_append_only"},
		{"UPDATE entries SET id = 3 WHERE id = 1", "entries_append_only"},
		{"UPDATE entries SET account_id = NULL WHERE id = 1", "entries_append_only"}, // the account is still there
		{"UPDATE entries SET note = note WHERE id = 1", ""},
		{"DELETE FROM accounts WHERE id = @nobody", ""},
		{"DELETE FROM fixed", "fixed_append_only"},
		{"UPDATE fixed SET id = 2", "fixed_append_only"},
		{"INSERT INTO fixed VALUES (2)", ""},
	} {
		tag, err := attempt(t, w.hub, tables, c.sql)
		if c.refusal != "" {
			refuses(t, err, "23514", c.refusal)
		} else if err != nil || tag.RowsAffected() == 0 {
			t.Errorf("%s: %s %v", c.sql, tag, err)
		}
	}
}

// JSON -----------------------------------------------------------------------------------------------------------------

func TestW01_MergePatchIsRFC7396(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct{ target, patch, want string }{
		// Appendix A
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`["a","b"]`, `["c","d"]`, `["c","d"]`},
		{`{"a":"b"}`, `["c"]`, `["c"]`},
		{`{"a":"foo"}`, `null`, `null`},
		{`{"a":"foo"}`, `"bar"`, `"bar"`},
		{`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		// Section 3
		{
			`{"title":"Goodbye!","author":{"givenName":"John","familyName":"Doe"},"tags":["example","sample"],"content":"This will be unchanged"}`,
			`{"title":"Hello!","phoneNumber":"+01-123-456-7890","author":{"familyName":null},"tags":["example"]}`,
			`{"title":"Hello!","author":{"givenName":"John"},"tags":["example"],"content":"This will be unchanged","phoneNumber":"+01-123-456-7890"}`,
		},
		// An empty key, a null in an array, which is a value there, and nothing to do
		{`{"":{"a":1}}`, `{"":{"b":[null,{"c":null}]}}`, `{"":{"a":1,"b":[null,{"c":null}]}}`},
		{`{"a":{"b":1}}`, `{}`, `{"a":{"b":1}}`},
		{`{"a":{"b":1}}`, `{"a":{}}`, `{"a":{"b":1}}`},
	} {
		var got string
		err := w.app.QueryRow(t.Context(), "SELECT CASE WHEN p = $3::jsonb THEN '' ELSE p::text END FROM jsonb_merge_patch($1, $2) p", c.target, c.patch, c.want).Scan(&got)
		if err != nil || got != "" {
			t.Errorf("%s patched with %s is %s, want %s (%v)", c.target, c.patch, got, c.want, err)
		}
	}
	// No patch at all is what a PATCH without this field means.
	if got := get[string](t, w.app, `SELECT jsonb_merge_patch('{"a": 1}', NULL)::text`); got != `{"a": 1}` {
		t.Error(got)
	}
}
