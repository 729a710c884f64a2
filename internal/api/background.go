package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/clienttypes"
	"github.com/alkdev/hub/internal/keyring"
)

// What the hub does besides answering: at its start, and in the background.

const (
	rotationBatch = 100             // secrets that a transaction of the sweep locks at most
	rotationPoll  = 2 * time.Second // how soon a replica notices a rotation that another has started
)

// Prepare registers the client types and the encryption keys that this hub comes with. It fails where the database knows another
// schema or another key under the same version, for then somebody else's rows would not be understood.
func (s *Server) Prepare(ctx context.Context) error {
	var types db.RegisterClientTypesParams
	for _, schema := range clienttypes.Schemas() {
		types.Types = append(types.Types, schema.Type)
		types.SchemaVersions = append(types.SchemaVersions, schema.Version)
		types.Schemas = append(types.Schemas, schema.JSON)
	}
	if err := s.store.AsHub(ctx, uuid.Nil, func(q *db.Queries) error { return q.RegisterClientTypes(ctx, types) }); err != nil {
		return fmt.Errorf("registering the client types: %w", err)
	}
	return s.SetKeys(ctx, s.Keys)
}

// SetKeys registers a ring's keys and encrypts with it from now on. Where it fails, the ring before stays in use.
func (s *Server) SetKeys(ctx context.Context, ring *keyring.Ring) error {
	var keys db.RegisterEncryptionKeysParams
	for _, key := range ring.Keys() {
		keys.Versions = append(keys.Versions, key.Version)
		keys.Fingerprints = append(keys.Fingerprints, key.Fingerprint[:])
	}
	var lacking []db.ListOtherEncryptionKeysRow
	err := s.store.AsHub(ctx, uuid.Nil, func(q *db.Queries) error {
		if err := q.RegisterEncryptionKeys(ctx, keys); err != nil {
			return err
		}
		var err error
		lacking, err = q.ListOtherEncryptionKeys(ctx, held(ring))
		return err
	})
	if err != nil {
		var refused *pgconn.PgError
		if errors.As(err, &refused) {
			err = errors.New(refused.Message)
		}
		return fmt.Errorf("the encryption keys %s: %w", ring, err)
	}
	s.keys.Store(ring)
	if ring.Primary() == 0 {
		s.Log.WarnContext(ctx, "there is no encryption key: secrets can neither be put nor revealed (README, Configuration)")
	} else {
		s.Log.InfoContext(ctx, "encryption keys", "keys", ring.String())
	}
	var without int64
	for _, key := range lacking {
		without += key.Secrets
	}
	s.metrics.secretsWithoutKey.Set(float64(without))
	if text := missingKeys(lacking); text != "" {
		s.Log.WarnContext(ctx, "secrets cannot be revealed: "+text)
	}
	return nil
}

func held(ring *keyring.Ring) []int32 {
	return each(ring.Keys(), func(k keyring.Key) int32 { return k.Version })
}

// missingKeys tells how many secrets are under keys that are not here; "" where none are.
func missingKeys(lacking []db.ListOtherEncryptionKeysRow) string {
	var parts []string
	for _, key := range lacking {
		if key.Secrets > 0 {
			parts = append(parts, fmt.Sprintf("%d under v%d (%s), which this hub does not hold", key.Secrets, key.Version, keyring.Fingerprint(key.Fingerprint)))
		}
	}
	return strings.Join(parts, "; ")
}

// Work does what is to be done in the background, until ctx ends.
func (s *Server) Work(ctx context.Context) {
	s.judgeAllClients(ctx)
	for ctx.Err() == nil {
		if err := s.rotateSecrets(ctx); err != nil && ctx.Err() == nil {
			s.Log.ErrorContext(ctx, "the rotation of secrets pauses", "cause", logged(err))
		}
		select {
		case <-ctx.Done():
		case <-s.rotate:
		case <-time.After(rotationPoll):
		}
	}
}

// Clients (C12) -------------------------------------------------------------------------------------------------------

// judgeAllClients judges the configs of all organisations by the schemas that this program has brought, logs and counts what is
// not valid, and keeps nobody from using it.
func (s *Server) judgeAllClients(ctx context.Context) {
	var orgs []uuid.UUID
	err := s.store.AsHub(ctx, uuid.Nil, func(q *db.Queries) (err error) { orgs, err = q.ListOrgsWithClients(ctx); return err })
	var checked, invalid int64
	for _, org := range orgs {
		if err != nil {
			break
		}
		var c, i int64
		c, i, err = judgeClients(ctx, func(fn func(*db.Queries) error) error { return s.store.AsHub(ctx, org, fn) }, func(row db.ListClientsToValidateRow, faults []api.FieldError) {
			s.Log.LogAttrs(ctx, slog.LevelWarn, "a client's config is not valid", slog.String("org", org.String()), slog.String("client", row.ID.String()), slog.String("name", row.Name), slog.String("type", row.Type), slog.Any("errors", faults))
		})
		checked, invalid = checked+c, invalid+i
	}
	if err != nil {
		if ctx.Err() == nil {
			s.Log.ErrorContext(ctx, "judging the clients' configs broke off", "cause", logged(err))
		}
		return
	}
	s.metrics.clientsInvalid.Set(float64(invalid))
	s.Log.InfoContext(ctx, "judged the clients' configs", "clients", checked, "invalid", invalid)
}

// judgeClients judges the clients of one organisation, page by page, each in its own run, and writes the verdicts that have changed.
func judgeClients(ctx context.Context, run func(func(*db.Queries) error) error, report func(db.ListClientsToValidateRow, []api.FieldError)) (checked, invalid int64, err error) {
	const page = 200
	for last := (db.ListClientsToValidateParams{RowLimit: page}); ; {
		var rows []db.ListClientsToValidateRow
		err := run(func(q *db.Queries) (err error) {
			if rows, err = q.ListClientsToValidate(ctx, last); err != nil {
				return err
			}
			var changed db.SetClientsValidParams
			for _, row := range rows {
				faults := []api.FieldError{{Pointer: "/type", Message: "is not known to this hub"}}
				schema, known := clienttypes.Current()[row.Type]
				if known {
					faults = schemaFaults("/config", schema.Validate(given(row.Config)))
				}
				if len(faults) > 0 {
					invalid++
					report(row, faults)
				}
				if valid := len(faults) == 0; known && valid != row.Valid { // a newer hub may know the type
					changed.Ids, changed.Valid, changed.Configs = append(changed.Ids, row.ID), append(changed.Valid, valid), append(changed.Configs, row.Config)
				}
			}
			if len(changed.Ids) == 0 {
				return nil
			}
			_, err = q.SetClientsValid(ctx, changed)
			return err
		})
		if err != nil {
			return 0, 0, err
		}
		checked += int64(len(rows))
		if len(rows) < page {
			return checked, invalid, nil
		}
		last.AfterID = rows[len(rows)-1].ID
	}
}

// Secrets (C11) -------------------------------------------------------------------------------------------------------

// rotateSecrets works on the running rotation until it is complete, where there is one and this hub holds its key. Several replicas
// do so at once: each takes what no other has locked. Nothing is remembered but by the secrets themselves, so that any of them can
// be killed at any time.
func (s *Server) rotateSecrets(ctx context.Context) error {
	var rotation db.SecretRotation
	err := s.store.AsHub(ctx, uuid.Nil, func(q *db.Queries) (err error) { rotation, err = q.GetRunningSecretRotation(ctx); return err })
	if errors.Is(err, pgx.ErrNoRows) {
		s.metrics.rotationRunning.Set(0)
		return nil
	}
	if err != nil {
		return err
	}
	s.metrics.rotationRunning.Set(1)
	s.countRotation(rotation.Total, rotation.Rotated, rotation.Failed)
	if !s.keys.Load().Holds(rotation.TargetVersion) {
		s.Log.WarnContext(ctx, "a rotation is left to other replicas: this one does not hold its key", "rotation", rotation.ID, "keyVersion", rotation.TargetVersion)
		return nil
	}
	s.Log.InfoContext(ctx, "rotating secrets", "rotation", rotation.ID, "keyVersion", rotation.TargetVersion, "total", rotation.Total, "rotated", rotation.Rotated)
	var others []db.ListOtherEncryptionKeysRow
	err = s.store.AsHub(ctx, uuid.Nil, func(q *db.Queries) (err error) {
		others, err = q.ListOtherEncryptionKeys(ctx, []int32{rotation.TargetVersion})
		return err
	})
	if err != nil {
		return err
	}
	var failed int64
	for _, key := range others {
		var orgs []uuid.UUID
		err = s.store.AsHub(ctx, uuid.Nil, func(q *db.Queries) (err error) {
			orgs, err = q.ListOrgsWithSecretsUnder(ctx, key.Version)
			return err
		})
		if err != nil {
			return err
		}
		for _, org := range orgs {
			f, err := s.rotateSecretsOf(ctx, org, key.Version, rotation)
			if err != nil {
				return err
			}
			failed += f
		}
	}
	// What this replica did not see, another one has locked: then it is not complete, and the next round looks again.
	var completed bool
	err = s.store.AsHub(ctx, uuid.Nil, func(q *db.Queries) (err error) {
		if completed, err = q.CompleteSecretRotation(ctx, db.CompleteSecretRotationParams{ID: rotation.ID, Failed: failed}); err != nil {
			return err
		}
		row, err := q.GetSecretRotation(ctx, rotation.ID)
		if err != nil {
			return err
		}
		s.countRotation(row.Total, row.Rotated, row.Failed)
		return nil
	})
	if err == nil && completed {
		s.metrics.rotationRunning.Set(0)
		s.Log.InfoContext(ctx, "the rotation of secrets is complete", "rotation", rotation.ID, "failed", failed)
	}
	return err
}

func (s *Server) countRotation(total, rotated, failed int64) {
	s.metrics.rotationSecrets.WithLabelValues("total").Set(float64(total))
	s.metrics.rotationSecrets.WithLabelValues("rotated").Set(float64(rotated))
	s.metrics.rotationSecrets.WithLabelValues("failed").Set(float64(failed))
}

// rotateSecretsOf goes once through an organisation's secrets that are under a key, and says how many it could not decrypt.
func (s *Server) rotateSecretsOf(ctx context.Context, org uuid.UUID, version int32, rotation db.SecretRotation) (failed int64, err error) {
	batch := db.LockSecretsToRotateParams{KeyVersion: version, RowLimit: int32(min(rotationBatch, s.RotationRate))}
	for {
		start := time.Now()
		ring := s.keys.Load() // it may be replaced meanwhile
		var rows []db.LockSecretsToRotateRow
		var count int64
		failedBefore := failed
		err := s.store.AsHub(ctx, org, func(q *db.Queries) (err error) {
			if rows, err = q.LockSecretsToRotate(ctx, batch); err != nil || len(rows) == 0 {
				return err
			}
			change := db.RotateSecretsParams{TargetVersion: rotation.TargetVersion}
			for _, row := range rows {
				bound := secretContext(row.OrgID, row.ClientID, row.Name)
				value, err := ring.Open(row.KeyVersion, row.Ciphertext, bound)
				if err != nil {
					failed++
					s.Log.LogAttrs(ctx, slog.LevelWarn, "a secret cannot be rotated", slog.String("org", org.String()), slog.String("client", row.ClientID.String()), slog.String("secret", row.Name), slog.Any("cause", err))
					continue
				}
				ciphertext, err := ring.Seal(rotation.TargetVersion, value, bound)
				if err != nil {
					return err
				}
				change.Ids = append(change.Ids, row.ID)
				change.OldCiphertexts = append(change.OldCiphertexts, row.Ciphertext)
				change.Ciphertexts = append(change.Ciphertexts, ciphertext)
			}
			if count, err = q.RotateSecrets(ctx, change); err != nil {
				return err
			}
			return q.AdvanceSecretRotation(ctx, db.AdvanceSecretRotationParams{ID: rotation.ID, Rotated: count})
		})
		if err != nil {
			return failedBefore, err
		}
		s.metrics.secretsReencrypted.WithLabelValues("sweep").Add(float64(count))
		s.metrics.rotationSecrets.WithLabelValues("rotated").Add(float64(count))
		if len(rows) == 0 {
			return failed, nil
		}
		batch.AfterID = rows[len(rows)-1].ID
		select {
		case <-ctx.Done():
			return failed, ctx.Err()
		case <-time.After(time.Duration(len(rows))*time.Second/time.Duration(s.RotationRate) - time.Since(start)):
		}
	}
}
