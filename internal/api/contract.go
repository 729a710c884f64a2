package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/google/uuid"
	"github.com/labstack/echo/v4"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/internal/pgjson"
	"github.com/alkdev/hub/internal/store"
)

// authenticateFirst is the body size, in bytes, above which the key is checked before the body is read: reading and checking
// that much is not done for strangers. Below it the key is checked with the operation's own statement.
const authenticateFirst = 64 << 10

func init() {
	openapi3.DefineStringFormatValidator("uuid", openapi3.NewRegexpFormatValidator(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`))
	// What time.Time reads: it knows no leap seconds.
	openapi3.DefineStringFormatValidator("date-time", openapi3.NewCallbackValidator(func(text string) error {
		at, err := time.Parse(time.RFC3339, text)
		if err == nil {
			_, err = at.MarshalText() // a cursor says it again
		}
		return err
	}))
}

// operation is what the contract says of one method of one path, ready for use.
type operation struct {
	id       string
	route    *routers.Route
	public   bool
	scopes   []string // x-scopes
	level    string   // x-level, or member
	query    []string // the names of its query parameters
	mediaOf  string   // of its request body; "" for none
	body     *openapi3.Schema
	optional bool // the request body
	streamed bool // x-body: stream
	loopback bool // x-loopback: true: only for requests from this machine
	long     bool // x-long: takes as long as an import may
	secret   bool // x-secret: its answer holds a secret
}

// contract finds an operation by its method and echo's spelling of its path.
type contract map[string]*operation

func loadContract(document []byte) (ops contract, version string, err error) {
	doc, err := openapi3.NewLoader().LoadFromData(document)
	if err != nil {
		return nil, "", fmt.Errorf("the contract: %w", err)
	}
	ops = contract{}
	for path, item := range doc.Paths.Map() {
		for method, spec := range item.Operations() {
			op := &operation{
				id:       spec.OperationID,
				route:    &routers.Route{Spec: doc, Path: path, PathItem: item, Method: method, Operation: spec},
				public:   spec.Security != nil && len(*spec.Security) == 0,
				level:    "member",
				streamed: spec.Extensions["x-body"] == "stream",
				loopback: spec.Extensions["x-loopback"] == true,
				long:     spec.Extensions["x-long"] == true,
				secret:   spec.Extensions["x-secret"] == true,
			}
			if level, ok := spec.Extensions["x-level"].(string); ok {
				op.level = level
			}
			if names, ok := spec.Extensions["x-scopes"].([]any); ok {
				for _, name := range names {
					op.scopes = append(op.scopes, name.(string))
				}
			}
			for _, p := range slices.Concat(item.Parameters, spec.Parameters) {
				if p.Value.In == openapi3.ParameterInQuery {
					op.query = append(op.query, p.Value.Name)
				}
			}
			// Authentication is the database's; kin-openapi would read the whole body before it asked anybody, a streamed one too.
			spec.Security = openapi3.NewSecurityRequirements()
			if spec.RequestBody != nil {
				op.optional = !spec.RequestBody.Value.Required
				for name, media := range spec.RequestBody.Value.Content {
					op.mediaOf, op.body = name, media.Schema.Value
				}
			}
			ops[method+" "+strings.NewReplacer("{", ":", "}", "").Replace(path)] = op
		}
	}
	return ops, doc.Info.Version, nil
}

type operationKey struct{}

func operationFrom(ctx context.Context) *operation {
	op, _ := ctx.Value(operationKey{}).(*operation)
	return op
}

func streamsBody(c echo.Context) bool {
	op := operationFrom(c.Request().Context())
	return op != nil && op.streamed
}

// conform lets a request through that the contract allows. In the order of what a client learns: 401 without a key in form,
// 401 or 403 by the database, and only then what is wrong with the request. For a request in order the database is asked
// together with the operation's first statement; for any other, alone.
func (s *Server) conform(ops contract) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) (err error) {
			r := c.Request()
			op := ops[r.Method+" "+c.Path()]
			// Slow readers and writers hold a connection no longer than the request may take.
			deadline := time.Now().Add(s.timeout(op) + 5*time.Second)
			control := http.NewResponseController(c.Response())
			_ = control.SetReadDeadline(deadline)                       // unsupported only by test recorders
			_ = control.SetWriteDeadline(deadline.Add(5 * time.Second)) // for the answer to a body that did not arrive
			if op == nil {
				return next(c) // not an operation: the documents, or echo's 404 and 405
			}
			ctx, cancel := context.WithTimeout(context.WithValue(r.Context(), operationKey{}, op), s.timeout(op))
			defer func() {
				if err != nil && ctx.Err() != nil { // said here: once it is cancelled, every context has ended
					err = fmt.Errorf("%w: %w", ctx.Err(), err)
				}
				cancel()
			}()

			if op.loopback && !s.MetricsOpen && !fromThisMachine(r) {
				return refuse("loopback_only")
			}
			caller := &store.Caller{Scopes: op.scopes, Level: op.level}
			if !op.public {
				if caller.KeyHash, err = bearer(r.Header); err != nil {
					return err
				}
				defer func() { s.limits.learn(caller, err) }()
				if err := s.limit(ctx, c, caller); err != nil {
					return err
				}
				ctx = store.WithCaller(ctx, caller)
			}
			r = r.WithContext(ctx)
			limit := s.MaxBody
			if op.streamed {
				limit = s.MaxImport
			}
			r.Body = bodyReader{http.MaxBytesReader(c.Response(), r.Body, limit)}
			c.SetRequest(r) // for problem.go and the log

			checked := op.public
			if !checked && (op.streamed || r.ContentLength > min(authenticateFirst, limit) || r.ContentLength < 0) {
				if err := s.store.Authenticate(ctx); err != nil {
					return err
				}
				checked = true
			}
			if r.ContentLength > limit {
				return tooLarge(limit)
			}
			if caller.SessionID, err = actingSession(r.Header); err == nil {
				err = op.check(r, c)
			}
			if err != nil {
				if !checked && !errors.Is(err, errIncomplete) {
					if denied := s.store.Authenticate(ctx); denied != nil {
						return denied
					}
				}
				return err
			}
			if op.streamed {
				c.SetRequest(r.WithContext(context.WithValue(ctx, bodyKey{}, r)))
			}
			err = s.idempotently(c, op, next)
			if !checked && caller.KeyID == uuid.Nil && isRefusal(err) { // the operation found fault before its first statement
				if denied := s.store.Authenticate(ctx); denied != nil {
					return denied
				}
			}
			return err
		}
	}
}

// isRefusal tells the server's own refusals from the database's.
func isRefusal(err error) bool {
	return errors.As(err, new(*problem)) || errors.As(err, new(*pgjson.Error))
}

func (s *Server) timeout(op *operation) time.Duration {
	if op != nil && (op.streamed || op.long) {
		return s.ImportTimeout
	}
	return s.RequestTimeout
}

// errIncomplete is in the error of reading a body that the client did not send whole, or not in time.
var errIncomplete = errors.New("the body is incomplete")

type bodyReader struct{ io.ReadCloser }

func (b bodyReader) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && !errors.As(err, new(*http.MaxBytesError)) { //nolint:errorlint // as io.Reader has it
		err = fmt.Errorf("%w: %w: %w", refuse("body_incomplete", api.FieldError{Pointer: "", Message: "must be sent whole, and in time"}), errIncomplete, err)
	}
	return n, err
}

// check compares the request with the contract and leaves its body ready to be read again.
func (op *operation) check(r *http.Request, c echo.Context) error {
	var faults []api.FieldError
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return refuse("invalid_request", api.FieldError{Pointer: "query:", Message: "is not a query string"})
	}
	for name, values := range query {
		switch {
		case !slices.Contains(op.query, name):
			faults = append(faults, api.FieldError{Pointer: "query:" + name, Message: "is not a parameter of this operation"})
		case len(values) > 1:
			faults = append(faults, api.FieldError{Pointer: "query:" + name, Message: "is given more than once"})
		}
	}
	var body []byte
	if op.mediaOf != "" && !(op.optional && r.ContentLength == 0) {
		if err := op.checkMediaType(r); err != nil {
			return err
		}
		if !op.streamed {
			if body, err = io.ReadAll(r.Body); err != nil {
				return err
			}
			if err := wellFormed(body); err != nil {
				return err
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
	}
	params := make(map[string]string, len(c.ParamNames()))
	for i, name := range c.ParamNames() {
		params[name] = c.ParamValues()[i]
		if value, err := url.PathUnescape(params[name]); err == nil && r.URL.RawPath != "" {
			params[name] = value
		}
	}
	err = openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
		Request: r, PathParams: params, QueryParams: query, Route: op.route,
		Options: &openapi3filter.Options{
			MultiError:          true,
			ExcludeRequestBody:  op.streamed,
			SkipSettingDefaults: true, // it would rewrite the body
		},
	})
	faults = append(faults, fieldErrors(err)...)
	if len(faults) == 0 {
		faults = op.unstorable(query, body)
	}
	if body != nil {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	if len(faults) == 0 {
		return nil
	}
	slices.SortFunc(faults, func(a, b api.FieldError) int { return strings.Compare(a.Pointer, b.Pointer) })
	return refuse("invalid_request", faults...)
}

// checkMediaType wants the body's type. A merge patch may call itself plain JSON, as most clients do.
func (op *operation) checkMediaType(r *http.Request) error {
	given, _, err := mime.ParseMediaType(r.Header.Get(echo.HeaderContentType))
	if err == nil && (given == op.mediaOf || given == echo.MIMEApplicationJSON) {
		r.Header.Set(echo.HeaderContentType, op.mediaOf)
		return nil
	}
	return refuse("unsupported_media_type", api.FieldError{Pointer: "header:Content-Type", Message: "must be " + op.mediaOf})
}

// fieldErrors makes pointers of kin-openapi's tree of errors.
func fieldErrors(err error) []api.FieldError {
	if err == nil {
		return nil
	}
	var faults []api.FieldError
	var many openapi3.MultiError
	var request *openapi3filter.RequestError
	var schema *openapi3.SchemaError
	switch {
	case isMulti(err, &many):
		for _, one := range many {
			faults = append(faults, fieldErrors(one)...)
		}
	case errors.As(err, &request) && request.Parameter != nil:
		message := "is not valid"
		if errors.As(request.Err, &schema) {
			message = schemaMessage(schema)
		} else if request.Reason != "" {
			message = request.Reason
		}
		faults = append(faults, api.FieldError{Pointer: request.Parameter.In + ":" + request.Parameter.Name, Message: message})
	case request != nil && request.Err != nil && request.Err != err: //nolint:errorlint // the same value, not the same kind
		if inner := fieldErrors(request.Err); len(inner) > 0 {
			return inner
		}
		faults = append(faults, api.FieldError{Pointer: "", Message: "is not valid JSON: " + request.Err.Error()})
	case errors.As(err, &schema):
		pointer, message := "", schemaMessage(schema)
		for _, token := range schema.JSONPointer() {
			pointer += pointerToken(token)
		}
		if name, unknown := unknownProperty(schema); unknown {
			pointer, message = pointer+pointerToken(name), "is not a field of this object"
		}
		faults = append(faults, api.FieldError{Pointer: pointer, Message: message})
	case request != nil:
		faults = append(faults, api.FieldError{Pointer: "", Message: request.Reason})
	}
	return faults
}

func pointerToken(name string) string {
	return "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}

// schemaMessage is kin-openapi's reason, less the regular expressions behind a format's name.
func schemaMessage(err *openapi3.SchemaError) string {
	if err.SchemaField == "format" && err.Schema != nil {
		return "must have the format " + err.Schema.Format
	}
	return err.Reason
}

// unknownProperty is the name of a field that the schema does not know. The error has it only in its reason.
func unknownProperty(err *openapi3.SchemaError) (name string, unknown bool) {
	quoted, ok := strings.CutPrefix(err.Reason, "property ")
	if quoted, unknown = strings.CutSuffix(quoted, " is unsupported"); !ok || !unknown {
		return "", false
	}
	name, unquoteErr := strconv.Unquote(quoted)
	return name, unquoteErr == nil
}

// isMulti is errors.As for the outermost error only: a RequestError may wrap a MultiError, and must be seen first.
func isMulti(err error, target *openapi3.MultiError) bool {
	many, ok := err.(openapi3.MultiError) //nolint:errorlint // see above
	*target = many
	return ok
}

// contractDepth is how deep the contract's own objects and arrays go at most, before free-form ones begin.
const contractDepth = 5

// wellFormed refuses what encoding/json lets pass: names that occur twice, of which each reader takes another, invalid UTF-8, and
// data behind the value. Below the contract's own objects depth counts anew, as for what is stored.
func wellFormed(body []byte) error {
	s := pgjson.NewBytesScanner(body)
	if err := scanValue(s, contractDepth); err != nil {
		return err
	}
	return s.End()
}

func scanValue(s *pgjson.Scanner, depth int) error {
	s.Root()
	c, err := s.Peek()
	switch {
	case err != nil:
	case c == '{' && depth > 0:
		_, err = s.Object(func(pgjson.Name) error { return scanValue(s, depth-1) })
	case c == '[' && depth > 0:
		_, err = s.Array(func(int) error { return scanValue(s, depth-1) })
	default:
		_, err = s.Value()
	}
	return err
}

// unstorable points at the strings that go to text columns, or are compared with one, and hold what those refuse: NUL, or half a
// surrogate pair. Within the contract's free-form objects they are welcome (X07).
func (op *operation) unstorable(query url.Values, body []byte) []api.FieldError {
	var faults []api.FieldError
	for name, values := range query {
		if !utf8.ValidString(values[0]) || strings.ContainsRune(values[0], 0) {
			faults = append(faults, api.FieldError{Pointer: "query:" + name, Message: "holds U+0000 or invalid UTF-8, which PostgreSQL cannot hold in text"})
		}
	}
	for fault := range pgjson.FindUnstorable(body) {
		if op.body == nil || !freeForm(op.body, strings.Split(fault.Pointer, "/")[1:]) {
			faults = append(faults, api.FieldError{Pointer: fault.Pointer, Message: fault.Message})
		}
	}
	return faults
}

// freeForm follows a pointer through the schema until it enters an object that may hold anything.
func freeForm(schema *openapi3.Schema, tokens []string) bool {
	for _, token := range tokens {
		if holdsAnything(schema) {
			return true
		}
		switch {
		case schema.Properties[token] != nil:
			schema = schema.Properties[token].Value
		case schema.Items != nil:
			if _, err := strconv.Atoi(token); err != nil {
				return false
			}
			schema = schema.Items.Value
		default:
			return false
		}
	}
	return holdsAnything(schema) // the pointer ends at the object, where names are too long for it
}

func holdsAnything(schema *openapi3.Schema) bool {
	extra := schema.AdditionalProperties
	return extra.Has != nil && *extra.Has || extra.Schema != nil
}
