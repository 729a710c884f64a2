// Package schemas judges values by JSON Schemas (2020-12) that others write.
package schemas

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

// Fault is what is wrong with a value. It quotes names and what is asked for, never a value: somebody may have put a secret there.
type Fault struct {
	Pointer string // RFC 6901, from the value
	Message string // the rest of a sentence that begins with the value
}

// Schema is a schema that was found good.
type Schema struct{ compiled *jsonschema.Schema }

// Compile reads a schema, which refers to nothing outside of itself. Its errors are for who wrote it.
func Compile(text []byte) (*Schema, error) {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(nowhere{})
	const url = "urn:hub:schema"
	if err := c.AddResource(url, document); err != nil {
		return nil, err
	}
	compiled, err := c.Compile(url)
	if err != nil {
		var invalid *jsonschema.SchemaValidationError
		var judged *jsonschema.ValidationError
		if errors.As(err, &invalid) && errors.As(invalid.Err, &judged) {
			if found := faults(judged, document, nil); len(found) > 0 {
				return nil, fmt.Errorf("at %s: %s", cmp.Or(found[0].Pointer, "/"), found[0].Message)
			}
		}
		return nil, errors.New(strings.ReplaceAll(err.Error(), url, ""))
	}
	return &Schema{compiled}, nil
}

// nowhere is what a schema may refer to beside itself.
type nowhere struct{}

func (nowhere) Load(url string) (any, error) {
	return nil, fmt.Errorf("%s: a schema refers to itself only", url)
}

// Validate says what is wrong with a JSON text, sorted by pointer; nothing when it is valid.
func (s *Schema) Validate(text []byte) []Fault {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return []Fault{{Message: "is not valid JSON"}}
	}
	err = s.compiled.Validate(value)
	if err == nil {
		return nil
	}
	var invalid *jsonschema.ValidationError
	if !errors.As(err, &invalid) {
		return []Fault{{Message: "cannot be validated"}}
	}
	found := faults(invalid, value, nil)
	slices.SortFunc(found, func(a, b Fault) int {
		return cmp.Or(strings.Compare(a.Pointer, b.Pointer), strings.Compare(a.Message, b.Message))
	})
	return slices.Compact(found)
}

// faults are the leaves of the tree of errors about a value: what they hang below, at the location above, only says that they are
// there.
func faults(err *jsonschema.ValidationError, value any, above []string) []Fault {
	at := pointer(err.InstanceLocation)
	switch k := err.ErrorKind.(type) {
	case *kind.Required:
		return members(at, k.Missing, "is missing")
	case *kind.DependentRequired:
		return members(at, k.Missing, fmt.Sprintf("is missing: it goes with %s", k.Prop))
	case *kind.AdditionalProperties:
		return members(at, k.Properties, "is not a field of this object")
	case *kind.PropertyNames:
		return []Fault{misnamed(k.Property, value, above, len(err.InstanceLocation))}
	}
	if len(err.Causes) > 0 {
		var found []Fault
		for _, cause := range err.Causes {
			found = append(found, faults(cause, value, err.InstanceLocation)...)
		}
		return found
	}
	return []Fault{{at, message(err.ErrorKind)}}
}

// misnamed says which member has a name that is not allowed. The library lets the location of such an error be overwritten
// (https://github.com/santhosh-tekuri/jsonschema/pull/269); its depth holds, and it lies below the error that it hangs below. Where
// that leaves more than one object, the fault is about what they have in common.
func misnamed(name string, value any, above []string, depth int) Fault {
	for _, t := range above {
		switch v := value.(type) {
		case map[string]any:
			value = v[t]
		case []any:
			if i, err := strconv.Atoi(t); err == nil && i < len(v) {
				value = v[i]
			}
		}
	}
	var places []string
	var search func(value any, at string, depth int)
	search = func(value any, at string, depth int) {
		switch v := value.(type) {
		case map[string]any:
			if depth == 0 {
				if _, ok := v[name]; ok {
					places = append(places, at)
				}
				return
			}
			for member, below := range v {
				search(below, at+token(member), depth-1)
			}
		case []any:
			if depth > 0 {
				for i, below := range v {
					search(below, at+token(strconv.Itoa(i)), depth-1)
				}
			}
		}
	}
	search(value, pointer(above), depth-len(above))
	if len(places) == 1 {
		return Fault{places[0] + token(name), "has a name that is not allowed here"}
	}
	common := pointer(above)
	if len(places) > 0 {
		common = places[0]
	}
	for _, place := range places {
		for !strings.HasPrefix(place+"/", common+"/") {
			common = common[:strings.LastIndex(common, "/")]
		}
	}
	return Fault{common, "has in it the name " + strings.TrimPrefix(token(name), "/") + ", which is not allowed there"}
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
		return "is not allowed by the schema"
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
