package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/labstack/echo/v4"

	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/store"
)

const headerIdempotencyKey = "Idempotency-Key"

// idempotently runs a POST that names an Idempotency-Key in one transaction with the note of its answer (X09): either both are
// there or neither. The same request with the key gets that answer again. Without a key it is just the operation.
func (s *Server) idempotently(c echo.Context, op *operation, next echo.HandlerFunc) error {
	r := c.Request()
	key := r.Header.Get(headerIdempotencyKey)
	if r.Method != http.MethodPost || key == "" || op.streamed {
		return next(c)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	request := sha256.New()
	fmt.Fprintf(request, "%s %s\n", r.Method, r.URL.RequestURI())
	request.Write(body)

	var answer *recorder
	outer := c.Response()
	defer c.SetRequest(r)
	defer c.SetResponse(outer)
	err = retrying(func() error {
		answer = newRecorder()
		return s.store.WithTx(r.Context(), store.ReadCommitted, func(ctx context.Context) error {
			prior, err := s.db.ClaimIdempotencyKey(ctx, key)
			switch {
			case err != nil:
				return err
			case prior.ID != nil:
				return answer.replay(prior, request.Sum(nil))
			case !deref(prior.Claimed):
				return refuse("idempotency_in_progress")
			}
			again := r.WithContext(ctx)
			again.Body = io.NopCloser(bytes.NewReader(body))
			c.SetRequest(again)
			c.SetResponse(echo.NewResponse(answer, c.Echo()))
			if err := next(c); err != nil {
				return err
			}
			headers, err := json.Marshal(answer.header)
			if err != nil {
				return err
			}
			note := db.RecordIdempotentAnswerParams{Key: key, Request: request.Sum(nil), Status: int32(answer.status), Headers: headers}
			if !op.secret {
				note.Body = append([]byte{}, answer.body.Bytes()...) // not NULL: an empty answer is no secret
			}
			return s.db.RecordIdempotentAnswer(ctx, note)
		})
	})
	c.SetResponse(outer)
	var refused *problem
	if errors.As(err, &refused) && refused.Code == "idempotency_secret_already_shown" {
		outer.Header().Set(echo.HeaderLocation, answer.header.Get(echo.HeaderLocation))
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.ConstraintName == db.IdempotencyKeysKeyKey { // the other one committed between our look and our lock
		return refuse("idempotency_in_progress")
	}
	if err != nil {
		return err
	}
	return answer.send(outer)
}

// recorder is an answer that waits for its transaction to commit.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func newRecorder() *recorder { return &recorder{header: http.Header{}, status: http.StatusOK} }

func (a *recorder) Header() http.Header         { return a.header }
func (a *recorder) WriteHeader(status int)      { a.status = status }
func (a *recorder) Write(p []byte) (int, error) { return a.body.Write(p) }

// replay makes it the answer that the key was given first.
func (a *recorder) replay(prior db.ClaimIdempotencyKeyRow, request []byte) error {
	if !bytes.Equal(prior.Request, request) {
		return refuse("idempotency_key_reused")
	}
	if err := json.Unmarshal(prior.Headers, &a.header); err != nil {
		return err
	}
	if prior.Body == nil {
		return refuse("idempotency_secret_already_shown")
	}
	a.header.Set("Idempotency-Replayed", "true")
	a.status = int(deref(prior.Status))
	a.body.Write(prior.Body)
	return nil
}

func (a *recorder) send(w *echo.Response) error {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.status)
	_, err := w.Write(a.body.Bytes())
	return err
}
