package jsonequal_test

import (
	"testing"

	"github.com/alkdev/hub/internal/pgjson/jsonequal"
)

func TestDiff(t *testing.T) {
	t.Parallel()
	const equal = "equal"
	for _, tt := range []struct{ a, b, pointer string }{
		{`{"a":[1,{"b":null}],"c":true}`, ` { "c" : true, "a" : [ 1, {"b":null} ] } `, equal},
		{`"\u00e9\ud83d\ude00\/\u0041\n"`, `"é😀/A\u000a"`, equal},
		{`"\ud83d\u0000"`, `"\uD83D\u0000"`, equal},
		{`{"\ud83d":1,"\ud83e":2}`, `{"\ud83e":2,"\ud83d":1}`, equal},
		{`1.0`, `1`, ""},
		{`[0,1e2]`, `[0,1E2]`, "/1"},
		{`[0]`, `[-0]`, "/0"},
		{`[1,2]`, `[1]`, ""},
		{`{"a":{"b/c":"x"}}`, `{"a":{"b/c":"y"}}`, "/a/b~1c"},
		{`{"a":1}`, `{}`, "/a"},
		{`{}`, `{"a":1}`, "/a"},
		{`{"a":null}`, `{"b":null}`, "/a"},
		{`"\ud83d"`, `"\ud83e"`, ""},
		{`"\ud83d"`, `"\ufffd"`, ""},
		{`"1"`, `1`, ""},
		{`{"a":1,"a":1}`, `{"a":1,"a":1}`, ""},
		{`[1`, `[1`, ""},
		{`1 2`, `1 2`, ""},
	} {
		got := equal
		if d := jsonequal.Diff([]byte(tt.a), []byte(tt.b)); d != nil {
			got = d.Pointer
		}
		if got != tt.pointer {
			t.Errorf("Diff(%s, %s) = %q, want %q", tt.a, tt.b, got, tt.pointer)
		}
	}
}
