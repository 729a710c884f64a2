package clienttypes

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

func TestC12_TheTypesAreThere(t *testing.T) {
	t.Parallel()
	want := []string{"git-forge", "http-api", "llm-provider", "mcp-server", "object-store", "webhook"}
	if got := slices.Sorted(maps.Keys(Current())); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for _, s := range Schemas() {
		var head struct {
			Schema             string `json:"$schema"`
			Title, Description string
			Examples           []json.RawMessage
		}
		if err := json.Unmarshal(s.JSON, &head); err != nil {
			t.Fatal(err)
		}
		if head.Schema != "https://json-schema.org/draft/2020-12/schema" || head.Title == "" || head.Description == "" || len(head.Examples) == 0 {
			t.Errorf("%s/%d: must be of 2020-12 and have a title, a description and examples", s.Type, s.Version)
		}
		for _, example := range head.Examples {
			// What a version accepted, each later one accepts.
			for _, later := range Schemas() {
				if later.Type == s.Type && later.Version >= s.Version {
					if faults := later.Validate(example); faults != nil {
						t.Errorf("%s/%d refuses the example %s of version %d: %v", s.Type, later.Version, example, s.Version, faults)
					}
				}
			}
		}
	}
}

// A schema that was released is frozen: what is changed in it is a new version. frozen.sum has one line for each file.
func TestC12_ReleasedSchemasAreFrozen(t *testing.T) {
	t.Parallel()
	got := sums(t, files)
	want, err := fs.ReadFile(files, "schemas/frozen.sum")
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range thawed(string(want), got) {
		t.Error(fault)
	}
	// The check itself: a file that was edited, one that is new, one that is gone.
	for what, sum := range map[string]string{"edited": strings.Replace(got, got[:6], "000000", 1), "new": got + "0 x/1.json\n", "gone": got[strings.Index(got, "\n")+1:]} {
		if len(thawed(string(want), sum)) == 0 {
			t.Errorf("a schema is %s, and nobody notices", what)
		}
	}
}

func sums(t *testing.T, files fs.FS) string {
	t.Helper()
	names, err := fs.Glob(files, "schemas/*/*.json")
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&lines, "%x %s\n", sha256.Sum256(text), strings.TrimPrefix(name, "schemas/"))
	}
	return lines.String()
}

func thawed(frozen, now string) []string {
	var faults []string
	for line := range strings.Lines(frozen) {
		if !strings.Contains(now, line) {
			faults = append(faults, fmt.Sprintf("%s was changed or removed: make a new version instead", strings.Fields(line)[1]))
		}
	}
	for line := range strings.Lines(now) {
		if !strings.Contains(frozen, line) {
			faults = append(faults, fmt.Sprintf("add to schemas/frozen.sum when it is released: %s", strings.TrimSpace(line)))
		}
	}
	return faults
}

// Each version accepts all that its predecessor accepted.
func TestC12_EachSchemaAcceptsWhatItsPredecessorAccepted(t *testing.T) {
	t.Parallel()
	faults, err := incompatible(files)
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range faults {
		t.Error(fault)
	}
}

// An evolution is one edit of a current schema, saved as its next version.
func TestC12_ABreakingEvolutionFailsTheCompatibilityTest(t *testing.T) {
	t.Parallel()
	type edit func(schema map[string]any)
	property := func(name string, schema any) edit {
		return func(s map[string]any) { s["properties"].(map[string]any)[name] = schema }
	}
	for what, c := range map[string]struct {
		edit  edit
		fault string
	}{
		"nothing":               {func(map[string]any) {}, ""},
		"a new optional field":  {property("proxy", map[string]any{"type": "string"}), ""},
		"another description":   {func(s map[string]any) { s["description"] = "other" }, ""},
		"one more value":        {property("kind", map[string]any{"enum": []any{"s3", "gcs", "azure", "file"}}), ""},
		"a wider bound":         {property("prefix", map[string]any{"type": "string", "maxLength": 1000}), ""},
		"no bound":              {property("prefix", map[string]any{"type": "string"}), ""},
		"less that is required": {func(s map[string]any) { s["required"] = []any{"kind"} }, ""},
		"any type":              {property("prefix", map[string]any{}), ""},
		"a new required field": {func(s map[string]any) {
			s["required"] = []any{"kind", "bucket", "proxy"}
			property("proxy", map[string]any{"type": "string"})(s)
		}, "required: proxy is new"},
		"an optional field is required": {func(s map[string]any) { s["required"] = []any{"kind", "bucket", "region"} }, "required: region is new"},
		"a field is gone":               {func(s map[string]any) { delete(s["properties"].(map[string]any), "region") }, "/properties: region is gone"},
		"one value less":                {property("kind", map[string]any{"enum": []any{"s3", "gcs"}}), "enum: azure is gone"},
		"an enum where there was none":  {property("region", map[string]any{"type": "string", "minLength": 1, "maxLength": 100, "enum": []any{"x"}}), "enum is new"},
		"a narrower bound":              {property("prefix", map[string]any{"type": "string", "maxLength": 499}), "maxLength: 499 is narrower than 500"},
		"a higher floor":                {property("region", map[string]any{"type": "string", "minLength": 2, "maxLength": 100}), "minLength: 2 is narrower than 1"},
		"a new bound":                   {property("pathStyle", map[string]any{"type": "boolean", "minLength": 1}), "minLength is new"},
		"another type":                  {property("prefix", map[string]any{"type": "integer", "maxLength": 500}), "type: string is gone"},
		"a new pattern":                 {property("prefix", map[string]any{"type": "string", "maxLength": 500, "pattern": "^x"}), "pattern is new"},
		"fields that need each other":   {func(s map[string]any) { s["dependentRequired"] = map[string]any{"region": []any{"endpoint"}} }, "dependentRequired"},
		"another rule":                  {func(s map[string]any) { s["not"] = map[string]any{"required": []any{"prefix"}} }, "not is new"},
		"closed definitions": {func(s map[string]any) {
			s["$defs"].(map[string]any)["secretName"] = map[string]any{"type": "string", "maxLength": 50, "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]*$"}
		}, "maxLength: 50 is narrower than 100"},
		"a new field that is not allowed": {property("prefix", false), "false"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var schema map[string]any
			if err := json.Unmarshal(Current()["object-store"].JSON, &schema); err != nil {
				t.Fatal(err)
			}
			c.edit(schema)
			text, err := json.Marshal(schema)
			if err != nil {
				t.Fatal(err)
			}
			evolved := fstest.MapFS{"schemas/object-store/1.json": {Data: Current()["object-store"].JSON}, "schemas/object-store/2.json": {Data: text}}
			faults, err := incompatible(evolved)
			if err != nil {
				t.Fatal(err)
			}
			if c.fault == "" && len(faults) > 0 || c.fault != "" && !strings.Contains(strings.Join(faults, "\n"), c.fault) {
				t.Errorf("faults %q, want %q", faults, c.fault)
			}
		})
	}
}

// Every schema, not only the one above, notices a field that becomes required.
func TestC12_ARequiredFieldBreaksEveryType(t *testing.T) {
	t.Parallel()
	for name, current := range Current() {
		var schema map[string]any
		if err := json.Unmarshal(current.JSON, &schema); err != nil {
			t.Fatal(err)
		}
		schema["properties"].(map[string]any)["tenant"] = map[string]any{"type": "string"}
		optional, _ := json.Marshal(schema)
		schema["required"] = append(schema["required"].([]any), "tenant")
		required, _ := json.Marshal(schema)
		for text, breaks := range map[string]bool{string(optional): false, string(required): true} {
			faults, err := incompatible(fstest.MapFS{"schemas/" + name + "/1.json": {Data: current.JSON}, "schemas/" + name + "/2.json": {Data: []byte(text)}})
			if err != nil || (len(faults) > 0) != breaks {
				t.Errorf("%s: %v %v, breaks: %v", name, faults, err, breaks)
			}
		}
	}
}

// incompatible compares each version with the one before it. It knows what can only widen a schema; every other difference counts
// as a fault, so that a new keyword is thought about and taught to it.
func incompatible(files fs.FS) ([]string, error) {
	schemas, err := load(files)
	if err != nil {
		return nil, err
	}
	var faults []string
	for i, s := range schemas {
		if i == 0 || schemas[i-1].Type != s.Type {
			if s.Version != 1 {
				faults = append(faults, fmt.Sprintf("%s begins with version %d", s.Type, s.Version))
			}
			continue
		}
		if s.Version != schemas[i-1].Version+1 {
			faults = append(faults, fmt.Sprintf("%s/%d does not follow %d", s.Type, s.Version, schemas[i-1].Version))
		}
		before, err := jsonschema.UnmarshalJSON(bytes.NewReader(schemas[i-1].JSON))
		if err != nil {
			return nil, err
		}
		after, err := jsonschema.UnmarshalJSON(bytes.NewReader(s.JSON))
		if err != nil {
			return nil, err
		}
		for _, fault := range narrower(before, after, "") {
			faults = append(faults, fmt.Sprintf("%s/%d refuses what %d accepted: %s", s.Type, s.Version, s.Version-1, fault))
		}
	}
	return faults, nil
}

var annotations = []string{"$schema", "$id", "$comment", "title", "description", "examples", "default", "deprecated"}

// narrower lists where the schema after accepts less than before.
func narrower(before, after any, at string) (faults []string) {
	if after == true || before == false || reflect.DeepEqual(before, after) {
		return nil
	}
	a, okA := before.(map[string]any)
	b, okB := after.(map[string]any)
	if !okA || !okB {
		return []string{fmt.Sprintf("%s: %v where there was %v", at, after, before)}
	}
	fault := func(keyword, format string, args ...any) {
		faults = append(faults, at+"/"+keyword+": "+fmt.Sprintf(format, args...))
	}
	for keyword, now := range b {
		then, had := a[keyword]
		if slices.Contains(annotations, keyword) || had && reflect.DeepEqual(then, now) {
			continue
		}
		path := at + "/" + keyword
		switch {
		case keyword == "required":
			for _, name := range now.([]any) {
				if !had || !slices.Contains(then.([]any), name) {
					fault(keyword, "%v is new", name)
				}
			}
		case keyword == "properties" || keyword == "$defs":
			if !had {
				then = map[string]any{}
			}
			for name, schema := range now.(map[string]any) {
				if schemaThen, ok := then.(map[string]any)[name]; ok {
					faults = append(faults, narrower(schemaThen, schema, path+"/"+name)...)
				} else if keyword == "properties" && a["additionalProperties"] != false {
					fault(keyword, "%s is new, and could be anything before", name)
				}
			}
		case !had:
			faults = append(faults, at+": "+keyword+" is new")
		case keyword == "enum":
			for _, value := range then.([]any) {
				if !slices.ContainsFunc(now.([]any), func(v any) bool { return reflect.DeepEqual(v, value) }) {
					fault(keyword, "%v is gone", value)
				}
			}
		case keyword == "type":
			for _, name := range asList(then) {
				if !slices.Contains(asList(now), name) {
					fault(keyword, "%v is gone", name)
				}
			}
		case strings.HasPrefix(keyword, "max") || keyword == "exclusiveMaximum":
			if number(now) < number(then) {
				fault(keyword, "%v is narrower than %v", now, then)
			}
		case strings.HasPrefix(keyword, "min") || keyword == "exclusiveMinimum":
			if number(now) > number(then) {
				fault(keyword, "%v is narrower than %v", now, then)
			}
		case slices.Contains([]string{"items", "additionalProperties", "propertyNames", "then", "else"}, keyword):
			faults = append(faults, narrower(then, now, path)...)
		default:
			fault(keyword, "has changed")
		}
	}
	if properties, ok := a["properties"].(map[string]any); ok {
		for name := range properties {
			if _, still := b["properties"].(map[string]any)[name]; !still && b["additionalProperties"] == false {
				fault("properties", "%s is gone", name)
			}
		}
	}
	return faults
}

func asList(value any) []any {
	if values, ok := value.([]any); ok {
		return values
	}
	return []any{value}
}

func number(value any) float64 {
	n, err := value.(json.Number).Float64()
	if err != nil {
		panic(err)
	}
	return n
}

func TestC12_FaultsPointAtWhatIsWrong(t *testing.T) {
	t.Parallel()
	const canary = "sk-canary"
	for _, c := range []struct{ typ, config, want string }{
		{"llm-provider", `{"provider":"openai"}`, ""},
		{"llm-provider", `{}`, "/provider is missing"},
		{"llm-provider", `{"provider":5}`, "/provider must be a string"},
		{"llm-provider", `{"provider":"` + canary + `_"}`, "/provider must match ^[a-z0-9]+(-[a-z0-9]+)*$"},
		{"llm-provider", `{"provider":"openai","apiKey":"` + canary + `"}`, "/apiKey is not a field of this object"},
		{"llm-provider", `{"provider":"openai","a~/b":1}`, "/a~0~1b is not a field of this object"},
		{"llm-provider", `{"provider":"openai","models":[{"id":"a"},{"contextTokens":0}]}`, "/models/1/contextTokens must be at least 1; /models/1/id is missing"},
		{"llm-provider", `{"provider":"openai","models":[{"id":"a","contextTokens":1.5}]}`, "/models/0/contextTokens must be an integer"},
		{"llm-provider", `{"provider":"openai","headers":{"Authorization":"Bearer ` + canary + `"}}`, "/headers/Authorization has a name that is not allowed here"},
		{"llm-provider", `{"provider":"openai","headers":{"X-API-KEY":"` + canary + `"}}`, "/headers/X-API-KEY has a name that is not allowed here"},
		{"llm-provider", `{"provider":"openai","baseUrl":"https://user:` + canary + `@host/"}`, "/baseUrl must match ^https?://[^@]*$"},
		{"llm-provider", `{"provider":"openai","baseUrl":"` + canary + `"}`, "/baseUrl must have the format uri"},
		{"llm-provider", `[]`, " must be an object"},
		{"mcp-server", `{"transport":"stdio","command":"x"}`, ""},
		{"mcp-server", `{"transport":"http","url":"https://x/"}`, ""},
		{"mcp-server", `{"transport":"stdio"}`, "/command is missing"},
		{"mcp-server", `{"transport":"http"}`, "/url is missing"},
		{"mcp-server", `{"transport":"http","url":"https://x/","command":"x"}`, "/command does not go with the other fields"},
		{"mcp-server", `{"transport":"stdio","command":"x","url":"https://x/"}`, "/url does not go with the other fields"},
		{"mcp-server", `{"transport":"sse","url":"https://x/"}`, "/transport must be one of stdio, http"},
		{"mcp-server", `{"transport":"stdio","command":"x","tools":["a","b","a"]}`, "/tools has the same item twice, at 0 and 2"},
		{"git-forge", `{"kind":"github","repositories":[1]}`, "/repositories/0 must be a string"},
		{"object-store", `{"kind":"s3","bucket":"b","accessKeyIdSecret":"a"}`, "/secretAccessKeySecret is missing: it goes with accessKeyIdSecret"},
		{"webhook", `{"url":"https://x/","events":["Task"]}`, "/events/0 must match "},
		{"http-api", `{"baseUrl":"https://x/","auth":{"kind":"basic","secret":"s"}}`, "/auth/username is missing"},
		{"http-api", `{"baseUrl":"https://x/","auth":{"kind":"bearer","secret":"s","name":"x"}}`, "/auth/name does not go with the other fields"},
		{"http-api", `{"baseUrl":"https://x/","auth":{"kind":"query","secret":"s","name":"key"}}`, ""},
		{"http-api", `{"baseUrl":`, " is not valid JSON"},
	} {
		var told []string
		for _, fault := range Current()[c.typ].Validate([]byte(c.config)) {
			told = append(told, fault.Pointer+" "+fault.Message)
		}
		got := strings.Join(told, "; ")
		if got != c.want && !(strings.HasSuffix(c.want, "match ") && strings.HasPrefix(got, c.want)) {
			t.Errorf("%s %s:\n\t%s\nwant\n\t%s", c.typ, c.config, got, c.want)
		}
		if strings.Contains(got, canary) {
			t.Errorf("the fault quotes the value: %s", got)
		}
	}
}

func TestC12_SchemasReferToThemselvesOnly(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`{"$ref":"https://example.com/x.json"}`, `{"$ref":"file:///etc/passwd"}`, `{"type":"nonsense"}`, `{`} {
		if _, err := load(fstest.MapFS{"schemas/x/1.json": {Data: []byte(text)}}); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
	if _, err := load(fstest.MapFS{"schemas/x/one.json": {Data: []byte(`{}`)}}); err == nil {
		t.Error("a version that is no number was taken")
	}
}

func BenchmarkValidate(b *testing.B) {
	config, err := os.ReadFile("schemas/llm-provider/1.json")
	if err != nil {
		b.Fatal(err)
	}
	var head struct{ Examples []json.RawMessage }
	if err := json.Unmarshal(config, &head); err != nil {
		b.Fatal(err)
	}
	s := Current()["llm-provider"]
	for b.Loop() {
		if s.Validate(head.Examples[1]) != nil {
			b.Fatal("invalid")
		}
	}
}
