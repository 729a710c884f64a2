package pgjson_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/alkdev/hub/internal/pgjson"
	"github.com/alkdev/hub/internal/pgjson/jsonequal"
)

func TestEscape(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		raw, want string // want is empty when raw stays
		respelled bool
	}{
		"scalars":                         {raw: ` [null, true ,false,0,"",{},[ ]] `},
		"other escapes":                   {raw: `"\"\\\/\b\f\n\r\t\u0001\u001F\u00e9\uffff\uFDD0"`},
		"surrogate pair":                  {raw: `"\ud83d\ude00 \uD83D\uDE00"`},
		"NUL":                             {raw: `"a\u0000b"`, want: `"a\u00100b"`},
		"NUL in a name":                   {raw: `{"a\u0000":1}`, want: `{"a\u00100":1}`},
		"backslash before u0000":          {raw: `"\\u0000"`},
		"backslash before an escaped NUL": {raw: `"\\\u0000"`, want: `"\\\u00100"`},
		"mark":                            {raw: `"\u00100"`, want: `"\u0010\u00100"`},
		"two marks":                       {raw: `"\u0010\u0010"`, want: `"\u0010\u0010\u0010\u0010"`},
		"high alone":                      {raw: `"\ud83d"`, want: `"\u0010ud83d"`},
		"high, upper case":                {raw: `"\uD83D"`, want: `"\u0010ud83d"`},
		"high before a character":         {raw: `"\ud83dx"`, want: `"\u0010ud83dx"`},
		"high before an escape":           {raw: `"\ud83d\n\ude00"`, want: `"\u0010ud83d\n\u0010ude00"`},
		"high before NUL":                 {raw: `"\ud83d\u0000"`, want: `"\u0010ud83d\u00100"`},
		"high before a pair":              {raw: `"\ud83d\ud83d\ude00"`, want: `"\u0010ud83d\ud83d\ude00"`},
		"low alone":                       {raw: `"\ude00"`, want: `"\u0010ude00"`},
		"low before high":                 {raw: `"\ude00\ud83d"`, want: `"\u0010ude00\u0010ud83d"`},
		"different lone names":            {raw: `{"\ud83d":1,"\ud83e":2}`, want: `{"\u0010ud83d":1,"\u0010ud83e":2}`},
		"same name at another depth":      {raw: `{"a":{"a":[{"a":1},{"a":2}]},"b":1}`},

		"plain numbers":          {raw: `[0,0.0,1.50,-1,-0.10,100,123456789012345678901234567890.10]`},
		"exponent":               {raw: `[1,1e2]`, respelled: true},
		"exponent, capital":      {raw: `{"a":1E2}`, respelled: true},
		"exponent 0":             {raw: `1.0e-0`, respelled: true},
		"negative zero":          {raw: `-0`, respelled: true},
		"negative zero, point":   {raw: `[[-0.00]]`, respelled: true},
		"not quite zero":         {raw: `-0.01`},
		"number in a string":     {raw: `"1e2"`},
		"respelled and escaped":  {raw: `["\u0000",1e2]`, want: `["\u00100",1e2]`, respelled: true},
		"longest exponent":       {raw: `[1e400,1E-400,0e+000400]`, respelled: true},
		"most digits":            {raw: strings.Repeat("1", 500) + "." + strings.Repeat("1", 500)},
		"deepest":                {raw: strings.Repeat("[", 256) + strings.Repeat("]", 256)},
		"large object":           {raw: bigObject(1000)},
		"non-ASCII near a quote": {raw: `"é","\u0000"`[:4]},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.want == "" {
				tt.want = tt.raw
			}
			text, err := pgjson.Escape([]byte(tt.raw))
			if err != nil {
				t.Fatal(err)
			}
			if string(text.JSON) != tt.want || text.Respelled != tt.respelled {
				t.Errorf("Escape(%s) = %s, respelled %v; want %s, %v", tt.raw, text.JSON, text.Respelled, tt.want, tt.respelled)
			}
			if d := jsonequal.Diff([]byte(tt.raw), pgjson.Unescape(stored(t, text))); d != nil {
				t.Error(d)
			}
		})
	}
}

// Each text at fault stands beside one that differs in a little and passes.
func TestEscapeRefuses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		bad, good, pointer, message string
		offset                      int64
	}{
		"empty":              {" ", "1", "", "cut short", 1},
		"trailing data":      {"1 2", "1 ", "", "more data", 2},
		"no value":           {`{"a":x}`, `{"a":0}`, "/a", "begins with 'x'", 5},
		"byte order mark":    {"\xef\xbb\xbf1", "1", "", "byte 0xEF", 0},
		"half a word":        {`[tru]`, `[true]`, "/0", "true was expected", 1},
		"no comma":           {`{"a":[1 2]}`, `{"a":[1,2]}`, "/a", "comma", 8},
		"comma at the end":   {`[1,]`, `[1]`, "/1", "begins with ']'", 3},
		"comma before }":     {`{"a":1,}`, `{"a":1}`, "", "name must be", 7},
		"wrong bracket":      {`[1}`, `[1]`, "", "comma or ']'", 2},
		"no colon":           {`{"a" 1}`, `{"a":1}`, "/a", "colon", 5},
		"number as name":     {`{1:1}`, `{"1":1}`, "", "name must be", 1},
		"open string":        {`["a`, `["a"]`, "/0", "cut short", 3},
		"open escape":        {`["a\u00`, `["a\u0000"]`, "/0", "cut short", 7},
		"open array":         {`[1`, `[1]`, "", "cut short", 2},
		"open object":        {`{"a":1`, `{"a":1}`, "", "cut short", 6},
		"unknown escape":     {`["\x41"]`, `["\u0041"]`, "/0", "escape", 2},
		"three hex digits":   {`["\u041"]`, `["\u0041"]`, "/0", "hex", 2},
		"line feed":          {"[\"a\nb\"]", `["a\nb"]`, "/0", "U+000A", 3},
		"raw mark":           {"[\"\x10\"]", `["\u0010"]`, "/0", "U+0010", 2},
		"leading zero":       {`[01]`, `[1]`, "/0", "leading zero", 1},
		"plus":               {`[+1]`, `[1]`, "/0", "begins with '+'", 1},
		"no digit":           {`[-]`, `[-1]`, "/0", "digit", 2},
		"no digit behind .":  {`[1.]`, `[1.0]`, "/0", "digit", 3},
		"no exponent":        {`[1e]`, `[1e1]`, "/0", "digit", 3},
		"stray byte":         {"[\"\x80\"]", `["é"]`, "/0", "UTF-8", 2},
		"overlong":           {"[\"\xc0\x80\"]", "[\"\xc2\x80\"]", "/0", "UTF-8", 2},
		"raw surrogate":      {"[\"\xed\xa0\x80\"]", "[\"\xed\x9f\xbf\"]", "/0", "UTF-8", 2},
		"cut rune":           {"[\"\xf0\x9f\x98\"]", "[\"\xf0\x9f\x98\x80\"]", "/0", "UTF-8", 2},
		"duplicate":          {`{"a":1,"b":2,"a":3}`, `{"a":1,"b":2,"A":3}`, "/a", "twice", 13},
		"duplicate, escaped": {`{"x":{"é":1,"\u00E9":2}}`, `{"x":{"é":1,"\u00E8":2}}`, "/x/é", "twice", 13},
		"duplicate lone":     {`{"\ud83d":1,"\uD83D":2}`, `{"\ud83d":1,"\uD83E":2}`, "/\uFFFD", "twice", 12},
		"duplicate pair":     {`{"\ud83d\ude00":1,"😀":2}`, `{"\ud83d\ude00":1,"😁":2}`, "/😀", "twice", 18},
		"duplicate NUL":      {`{"a\u0000":1,"\u0061\u0000":2}`, `{"a\u0000":1,"\u0061\u0001":2}`, "/a\uFFFD", "twice", 13},
		"duplicate among many": {
			bigObject(1000)[:len(bigObject(1000))-1] + `,"name-7":0}`, bigObject(1001), "/name-7", "twice", int64(len(bigObject(1000))),
		},
		"too deep": {
			`{"a":` + strings.Repeat("[", 256) + strings.Repeat("]", 256) + `}`,
			`{"a":` + strings.Repeat("[", 255) + strings.Repeat("]", 255) + `}`,
			"/a" + strings.Repeat("/0", 255), "deeper than 256", 260,
		},
		"exponent":       {`[1e401]`, `[1e400]`, "/0", "±400", 1},
		"small exponent": {`[1e-401]`, `[1e-400]`, "/0", "±400", 1},
		"huge exponent":  {`[1e99999999999999999999]`, `[1e99]`, "/0", "±400", 1},
		"digits": {
			"[" + strings.Repeat("1", 1001) + "]", "[" + strings.Repeat("1", 1000) + "]", "/0", "1000 digits", 1,
		},
		"digits behind the point": {
			"[1." + strings.Repeat("1", 1000) + "]", "[1." + strings.Repeat("1", 999) + "]", "/0", "1000 digits", 1,
		},
		"pointer": {`{"a/b":{"~":[0,x]}}`, `{"a/b":{"~":[0,1]}}`, "/a~1b/~0/1", "begins with", 15},
		"long pointer": {
			`{"a":{"` + strings.Repeat("b", 2000) + `":x}}`, `{"a":{"` + strings.Repeat("b", 2000) + `":1}}`, "/a", "begins with", 2009,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := pgjson.Escape([]byte(tt.good)); err != nil {
				t.Errorf("Escape(%.100s): %v", tt.good, err)
			}
			_, err := pgjson.Escape([]byte(tt.bad))
			var fault *pgjson.Error
			if !errors.As(err, &fault) {
				t.Fatalf("Escape(%.100s): %v", tt.bad, err)
			}
			if fault.Pointer != tt.pointer || fault.Offset != tt.offset || !strings.Contains(fault.Message, tt.message) {
				t.Errorf("Escape(%.100s): %q at %d: %s; want %q at %d: %s", tt.bad,
					fault.Pointer, fault.Offset, fault.Message, tt.pointer, tt.offset, tt.message)
			}
		})
	}
}

func TestEscapeRefusesWhatJSONBCannotHold(t *testing.T) {
	t.Parallel()
	if testing.Short() || raceEnabled {
		t.Skip("takes 256 MB, and half a minute with the race detector")
	}
	for name, raw := range map[string][]byte{
		"string":   []byte(`"` + strings.Repeat("a", 1<<28) + `"`),
		"elements": []byte("[" + strings.Repeat("0,", 1<<23) + "0]"),
	} {
		_, err := pgjson.Escape(raw)
		if fault := new(pgjson.Error); !errors.As(err, &fault) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEscapeAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget at random")
	}
	raw := export(t, "12-large-output.json")
	if n := testing.AllocsPerRun(10, func() {
		text, err := pgjson.Escape(raw)
		if err != nil || &text.JSON[0] != &raw[0] || &pgjson.Unescape(raw)[0] != &raw[0] {
			t.Error("the text does not come back as it is")
		}
	}); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}

func TestUnescapeLeavesUnknownMarks(t *testing.T) {
	t.Parallel()
	for stored, want := range map[string]string{
		`"\u0010"`:                     `"\u0010"`,
		`"\u00101"`:                    `"\u00101"`,
		`"\u0010u0041"`:                `"\u0010u0041"`,
		`"\u0010ud83"`:                 `"\u0010ud83"`,
		`"\u0010ud8zz"`:                `"\u0010ud8zz"`,
		`"\u0010uD83D"`:                `"\uD83D"`,
		`"\u0010\n\u00100"`:            `"\u0010\n\u0000"`,
		`"\u0010\u0010\u0010"`:         `"\u0010\u0010"`,
		`"\\u00100 \u00100"`:           `"\\u00100 \u0000"`,
		`"\\\u00100"`:                  `"\\\u0000"`,
		`{"\u0010u": ["\u0010", "0"]}`: `{"\u0010u": ["\u0010", "0"]}`,
		`\u0010`:                       `\u0010`,
		`\u00100\`:                     `\u0000\`,
	} {
		if got := string(pgjson.Unescape([]byte(stored))); got != want {
			t.Errorf("Unescape(%s) = %s, want %s", stored, got, want)
		}
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	for literal, want := range map[string]string{
		`""`:                         "",
		`"plain é 😀"`:                "plain é 😀",
		`"\"\\\/\b\f\n\r\t\u00e9"`:   "\"\\/\b\f\n\r\té",
		`"a\u0000b\u0000"`:           "a\uFFFDb\uFFFD",
		`"\ud83d\ude00"`:             "😀",
		`"\ud83d\ud83d\ude00\ude00"`: "\uFFFD😀\uFFFD",
		`"\ude00\ud83d"`:             "\uFFFD\uFFFD",
		`"\\u0000"`:                  `\u0000`,
		"\"\xff\xed\xa0\x80\"":       "\uFFFD\uFFFD",
	} {
		if got := pgjson.Clean([]byte(literal)); got != want {
			t.Errorf("Clean(%s) = %q, want %q", literal, got, want)
		}
	}
}

func TestFindUnstorable(t *testing.T) {
	t.Parallel()
	raw := `{"ok":"\u0001\\u0000\ud83d\ude00", "a":["\u0000",{"b\u0000":"\ud83d"}], "c":"\ude00", "d":1}`
	var got []string
	for err := range pgjson.FindUnstorable([]byte(raw)) {
		got = append(got, err.Pointer)
		if raw[err.Offset] != '"' {
			t.Errorf("%v: is not where a string begins", err)
		}
	}
	want := []string{"/a/0", "/a/1/b\uFFFD", "/a/1/b\uFFFD", "/c"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for err := range pgjson.FindUnstorable([]byte(raw)) {
		if err.Pointer != want[0] {
			t.Errorf("after break: %v", err)
		}
		break
	}
	for _, raw := range []string{`{"a":"b"}`, `["\u0001"]`, `["\u0001`, ``} {
		for err := range pgjson.FindUnstorable([]byte(raw)) {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

// FuzzRoundTrip checks that Escape takes exactly what is JSON within the limits, that jsonb holds what it makes, and that
// Unescape gives every value back.
func FuzzRoundTrip(f *testing.F) {
	for _, seed := range []string{
		`{"a\u0000":["\ud83d","\ud83d\ude00","\ude00\ud83d\u0010",1e2,-0.0,"\u00100\u0010ud83d"]}`,
		`{"a":1,"\u0061":2}`, `["\\u0000\\\u0000"]`, `[0.10,-1E-400,1e401,123]`, "\"\x80é\"", `[{},[],{"":{}},true,false,null]`,
		`"\uD83D\uD83D\uDE00\uDE00"`, `[1,]`, `01`, `nul`, ` "é" `, `{"a":1 "b"}`, strings.Repeat("[", 300),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		text, err := pgjson.Escape(raw)
		if err != nil {
			var fault *pgjson.Error
			if !errors.As(err, &fault) || fault.Offset < 0 || fault.Offset > int64(len(raw)) || !utf8.ValidString(fault.Pointer) {
				t.Fatalf("%#v", err)
			}
			limit := strings.Contains(fault.Message, "deeper") || strings.Contains(fault.Message, "number")
			if !limit && isJSON(raw) {
				t.Fatalf("refused: %v", err)
			}
			return
		}
		if !isJSON(raw) {
			t.Fatalf("no JSON, but taken: %q", raw)
		}
		if d := jsonequal.Diff(raw, pgjson.Unescape(stored(t, text))); d != nil {
			t.Fatal(d)
		}
		if d := jsonequal.Diff(raw, pgjson.Unescape(text.JSON)); d != nil {
			t.Fatal(d)
		}
		found := false
		for err := range pgjson.FindUnstorable(raw) {
			found = true
			if s := err.Pointer; strings.ContainsRune(s, 0) {
				t.Fatalf("pointer %q", s)
			}
		}
		if d := jsonequal.Diff(raw, text.JSON); found && d == nil {
			t.Fatal("unstorable strings, but nothing escaped")
		}
	})
}

func BenchmarkEscape(b *testing.B) {
	plain := export(b, "12-large-output.json")
	for name, raw := range map[string][]byte{
		"290kB export": plain,
		"with a NUL":   bytes.Replace(plain, []byte(`"text": "`), []byte(`"text": "\u0000`), 1),
		"unicode":      export(b, "07-unicode.json"),
		"structure":    export(b, "02-tools-fix-discount.json"),
		"cyrillic":     []byte(`"` + strings.Repeat("слово за слово ", 10000) + `"`),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := pgjson.Escape(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/json.Valid", func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				json.Valid(raw)
			}
		})
	}
}

func BenchmarkUnescape(b *testing.B) {
	plain := export(b, "12-large-output.json")
	for name, raw := range map[string][]byte{
		"290kB export": plain,
		"with a NUL":   bytes.Replace(plain, []byte(`"text": "`), []byte(`"text": "\u00100`), 1),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				pgjson.Unescape(raw)
			}
		})
	}
}

// isJSON is an opinion from elsewhere: valid JSON and UTF-8, without a name that occurs twice.
func isJSON(raw []byte) bool {
	v := jsontext.Value(raw)
	return utf8.Valid(raw) && v.IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)) &&
		jsonequal.Diff(raw, raw) == nil
}

// stored returns what PostgreSQL prints of a text that was stored: the json column when there is one, or jsonb. As jsonb does, it
// fails for NUL and lone surrogates, and prints strings anew; order and white space do not matter here.
func stored(t *testing.T, text pgjson.Text) []byte {
	t.Helper()
	if text.Respelled {
		return text.JSON
	}
	var printed []byte
	for rest := text.JSON; len(rest) > 0; {
		if rest[0] != '"' {
			printed = append(printed, rest[0])
			rest = rest[1:]
			continue
		}
		end := 1
		for ; rest[end] != '"'; end++ {
			if rest[end] == '\\' {
				end++
			}
		}
		var s string
		if err := json.Unmarshal(rest[:end+1], &s); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsRune(s, 0) || strings.Count(s, "\uFFFD") > strings.Count(strings.ToLower(string(rest[:end])), `\ufffd`)+
			strings.Count(string(rest[:end]), "\uFFFD") {
			t.Fatalf("jsonb cannot hold %s", rest[:end+1])
		}
		printed = append(printed, printString(s)...)
		rest = rest[end+1:]
	}
	return printed
}

// printString spells a string as PostgreSQL's escape_json does.
func printString(s string) []byte {
	short := map[rune]string{'\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`, '"': `\"`, '\\': `\\`}
	b := []byte{'"'}
	for _, r := range s {
		switch {
		case short[r] != "":
			b = append(b, short[r]...)
		case r < ' ':
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

func bigObject(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"name-%d":%d`, i, i)
	}
	return "{" + b.String()[1:] + "}"
}

func export(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "opencode", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
