// Package clienttypes knows the kinds of clients and judges their configurations by JSON Schemas (2020-12).
//
// schemas/<type>/<version>.json: the newest version is in force, and the ones before it are frozen. A new version accepts all that
// its predecessor accepted, so new fields are optional; a breaking change is a new type, such as llm-provider-v2. The tests hold
// every version against its predecessor, and each file against schemas/frozen.sum.
package clienttypes

import (
	"bytes"
	"cmp"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

//go:embed schemas
var files embed.FS

// Schema is one version of a type's schema.
type Schema struct {
	Type    string
	Version int32
	JSON    json.RawMessage

	compiled *jsonschema.Schema
}

// Fault is what is wrong with a configuration. It quotes names and what is asked for, never a value: somebody may have put a
// secret there.
type Fault struct {
	Pointer string // RFC 6901, from the configuration
	Message string // the rest of a sentence that begins with the value
}

// Schemas are all versions of all types, sorted by both.
var Schemas = sync.OnceValue(func() []Schema {
	schemas, err := load(files)
	if err != nil {
		panic(err) // a broken build: the tests load them too
	}
	return schemas
})

// Current is the schema in force for each type.
var Current = sync.OnceValue(func() map[string]Schema {
	current := map[string]Schema{}
	for _, s := range Schemas() {
		current[s.Type] = s
	}
	return current
})

func load(files fs.FS) ([]Schema, error) {
	names, err := fs.Glob(files, "schemas/*/*.json")
	if err != nil {
		return nil, err
	}
	schemas := make([]Schema, 0, len(names))
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		version, err := strconv.ParseInt(strings.TrimSuffix(path.Base(name), ".json"), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%s: a schema's file is named after its version", name)
		}
		s := Schema{Type: path.Base(path.Dir(name)), Version: int32(version), JSON: text}
		if s.compiled, err = compile(text); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		schemas = append(schemas, s)
	}
	slices.SortFunc(schemas, func(a, b Schema) int { return cmp.Or(strings.Compare(a.Type, b.Type), int(a.Version-b.Version)) })
	return schemas, nil
}

func compile(text []byte) (*jsonschema.Schema, error) {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(nowhere{})
	const url = "urn:hub:client-type"
	if err := c.AddResource(url, document); err != nil {
		return nil, err
	}
	return c.Compile(url)
}

// nowhere is what a schema may refer to beside itself.
type nowhere struct{}

func (nowhere) Load(url string) (any, error) {
	return nil, fmt.Errorf("%s: a schema refers to itself only", url)
}

// Validate says what is wrong with a configuration, sorted by pointer; nothing when it is valid.
func (s Schema) Validate(config []byte) []Fault {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(config))
	if err != nil {
		return []Fault{{Message: "is not valid JSON"}}
	}
	err = s.compiled.Validate(value)
	if err == nil {
		return nil
	}
	invalid, ok := err.(*jsonschema.ValidationError) //nolint:errorlint // what Validate returns
	if !ok {
		return []Fault{{Message: "cannot be validated"}}
	}
	found := faults(invalid)
	slices.SortFunc(found, func(a, b Fault) int {
		return cmp.Or(strings.Compare(a.Pointer, b.Pointer), strings.Compare(a.Message, b.Message))
	})
	return slices.Compact(found)
}

// faults are the leaves of the tree of errors: what they hang below only says that they are there.
func faults(err *jsonschema.ValidationError) []Fault {
	at := pointer(err.InstanceLocation)
	switch k := err.ErrorKind.(type) {
	case *kind.Required:
		return members(at, k.Missing, "is missing")
	case *kind.DependentRequired:
		return members(at, k.Missing, fmt.Sprintf("is missing: it goes with %s", k.Prop))
	case *kind.AdditionalProperties:
		return members(at, k.Properties, "is not a field of this object")
	case *kind.PropertyNames:
		return []Fault{{at + token(k.Property), "has a name that is not allowed here"}}
	}
	if len(err.Causes) > 0 {
		var found []Fault
		for _, cause := range err.Causes {
			found = append(found, faults(cause)...)
		}
		return found
	}
	return []Fault{{at, message(err.ErrorKind)}}
}

func members(at string, names []string, message string) []Fault {
	found := make([]Fault, len(names))
	for i, name := range names {
		found[i] = Fault{at + token(name), message}
	}
	return found
}

// message says what is asked for, and nothing of what was given.
func message(k jsonschema.ErrorKind) string {
	switch k := k.(type) {
	case *kind.Type:
		return "must be " + article(strings.Join(k.Want, " or "))
	case *kind.Enum:
		return "must be one of " + list(k.Want)
	case *kind.Const:
		return "must be " + list([]any{k.Want})
	case *kind.Format:
		return "must have the format " + k.Want
	case *kind.Pattern:
		return "must match " + k.Want
	case *kind.MinLength:
		return fmt.Sprintf("must have at least %d characters", k.Want)
	case *kind.MaxLength:
		return fmt.Sprintf("must have at most %d characters", k.Want)
	case *kind.MinItems:
		return fmt.Sprintf("must have at least %d items", k.Want)
	case *kind.MaxItems:
		return fmt.Sprintf("must have at most %d items", k.Want)
	case *kind.MinProperties:
		return fmt.Sprintf("must have at least %d fields", k.Want)
	case *kind.MaxProperties:
		return fmt.Sprintf("must have at most %d fields", k.Want)
	case *kind.Minimum:
		return "must be at least " + k.Want.RatString()
	case *kind.Maximum:
		return "must be at most " + k.Want.RatString()
	case *kind.ExclusiveMinimum:
		return "must be more than " + k.Want.RatString()
	case *kind.ExclusiveMaximum:
		return "must be less than " + k.Want.RatString()
	case *kind.MultipleOf:
		return "must be a multiple of " + k.Want.RatString()
	case *kind.UniqueItems:
		return fmt.Sprintf("has the same item twice, at %d and %d", k.Duplicates[0], k.Duplicates[1])
	case *kind.FalseSchema:
		return "does not go with the other fields"
	default:
		return "is not allowed by the type's schema"
	}
}

func article(noun string) string {
	if strings.ContainsAny(noun[:1], "aeio") {
		return "an " + noun
	}
	return "a " + noun
}

func list(values []any) string {
	names := make([]string, len(values))
	for i, value := range values {
		names[i] = fmt.Sprint(value)
	}
	return strings.Join(names, ", ")
}

func pointer(tokens []string) string {
	var text strings.Builder
	for _, t := range tokens {
		text.WriteString(token(t))
	}
	return text.String()
}

var escapes = strings.NewReplacer("~", "~0", "/", "~1", "\x00", "\uFFFD")

// token is a reference token, of a name that is not endless.
func token(name string) string {
	if runes := []rune(name); len(runes) > 200 {
		name = string(runes[:200])
	}
	return "/" + escapes.Replace(name)
}
