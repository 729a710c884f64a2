package schemas_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/alkdev/hub/internal/schemas"
)

func TestValidateNamesPlacesAndNeverQuotesValues(t *testing.T) {
	t.Parallel()
	s, err := schemas.Compile([]byte(`{"type":"object","required":["path"],"additionalProperties":false,"properties":{
		"path":{"type":"string","minLength":2},"depth":{"$ref":"#/$defs/depth"},"when":{"type":"string","format":"date-time"}},"$defs":{"depth":{"type":"integer","maximum":9}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		`{"path":"ab","depth":9}`:           "",
		`{}`:                                "/path is missing",
		`{"path":"a"}`:                      "/path must have at least 2 characters",
		`{"path":7,"depth":10}`:             "/depth must be at most 9;/path must be a string",
		`{"path":"ab","sk-secret/x":1}`:     "/sk-secret~1x is not a field of this object",
		`{"path":"ab","when":"sk-secret"}`:  "/when must have the format date-time",
		`[]`:                                " must be an object",
		`{`:                                 " is not valid JSON",
		`{"path":"ab","depth":1e400}`:       "/depth must be at most 9",
		`{"path":"ab","depth":12345678901}`: "/depth must be at most 9",
	} {
		var got []string
		for _, f := range s.Validate([]byte(text)) {
			got = append(got, fmt.Sprintf("%s %s", f.Pointer, f.Message))
		}
		if strings.Join(got, ";") != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// The library overwrites the locations of these errors with those of what it judges later.
func TestNamesThatAreNotAllowed(t *testing.T) {
	t.Parallel()
	s, err := schemas.Compile([]byte(`{"properties":{"z":{"type":"integer"},"a":{"type":"array","items":{"propertyNames":{"maxLength":2}}}},"propertyNames":{"maxLength":3}}`))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		`{"a":[{"x":1},{"long/1":1},{"y":1},{"v":1}],"z":1}`:    "/a/1/long~11 has a name that is not allowed here",
		`{"a":[{"x":1},{"long":1},{"long":1},{"v":1}],"z":1}`:   "/a has in it the name long, which is not allowed there",
		`{"a":[{"x":1},{"long":1},{"y":1},[2]],"long":1,"z":1}`: "/a/1/long has a name that is not allowed here;/long has a name that is not allowed here",
	} {
		for range 50 {
			var got []string
			for _, f := range s.Validate([]byte(text)) {
				got = append(got, f.Pointer+" "+f.Message)
			}
			if strings.Join(got, ";") != want {
				t.Fatalf("%s: %q, want %q", text, got, want)
			}
		}
	}
}

func TestCompileRefusesWhatIsNoSchemaAndWhatLiesOutside(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"type":"strnig"}`:                       "at /type",
		`{"patternProperties":{"a":{},"(":{}}}`:   "at /patternProperties/(: has a name",
		`{"properties":{"a":{"minimum":"x"}}}`:    "at /properties/a/minimum: must be a number",
		`{"$ref":"https://example.com/x.json"}`:   "refers to itself only",
		`{"$ref":"file:///etc/passwd"}`:           "refers to itself only",
		`{"$ref":"#/$defs/none"}`:                 "none",
		`{"type":"string","pattern":"(unclosed"}`: "/pattern",
		`nonsense`: "invalid character",
	} {
		if _, err := schemas.Compile([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
