package api

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/clienttypes"
	"github.com/alkdev/hub/internal/keyring"
	"github.com/alkdev/hub/internal/store"
)

// ListClientTypes implements the contract's operation.
func (s *Server) ListClientTypes(ctx context.Context, _ api.ListClientTypesRequestObject) (api.ListClientTypesResponseObject, error) {
	if err := s.store.Authenticate(ctx); err != nil { // the types are the program's: there is no statement to ride with
		return nil, err
	}
	var list api.ListClientTypes200JSONResponse
	for _, schema := range clienttypes.Schemas() {
		if clienttypes.Current()[schema.Type].Version != schema.Version {
			continue
		}
		item := api.ClientType{Type: schema.Type, SchemaVersion: schema.Version, Schema: schema.JSON}
		if err := json.Unmarshal(schema.JSON, &item); err != nil { // title and description
			return nil, err
		}
		item.Type, item.Schema = schema.Type, schema.JSON // "type": "object" is the schema's own
		list.Items = append(list.Items, item)
	}
	return list, nil
}

// CreateClient implements the contract's operation.
func (s *Server) CreateClient(ctx context.Context, r api.CreateClientRequestObject) (api.CreateClientResponseObject, error) {
	config, err := storable(&r.Body.Config)
	if err != nil {
		return nil, at("/config", err)
	}
	metadata, err := storable(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	schema, known := clienttypes.Current()[r.Body.Type]
	if !known {
		return nil, refuse(db.ClientsTypeFkey, api.FieldError{Pointer: "/type", Message: "must be one of listClientTypes"})
	}
	if faults := schema.Validate(r.Body.Config); faults != nil {
		return nil, refuse("client_config_invalid", schemaFaults("/config", faults)...)
	}
	row, err := s.db.CreateClient(ctx, db.CreateClientParams{
		Type: schema.Type, SchemaVersion: schema.Version, Name: r.Body.Name, Description: deref(r.Body.Description),
		Enabled: r.Body.Enabled == nil || *r.Body.Enabled, Config: config.JSON, Metadata: metadata.JSON,
	})
	if err != nil {
		return nil, err
	}
	return api.CreateClient201JSONResponse{
		Body:    client(row),
		Headers: api.CreateClient201ResponseHeaders{ETag: etag(row.Revision), Location: "/v1/clients/" + row.ID.String()},
	}, nil
}

// GetClient implements the contract's operation.
func (s *Server) GetClient(ctx context.Context, r api.GetClientRequestObject) (api.GetClientResponseObject, error) {
	row, err := s.db.GetClient(ctx, r.ClientId)
	if err != nil {
		return nil, missing("client", err)
	}
	return api.GetClient200JSONResponse{Body: client(row), Headers: api.GetClient200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListClients implements the contract's operation.
func (s *Server) ListClients(ctx context.Context, r api.ListClientsRequestObject) (api.ListClientsResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	name, _, err := after[string](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListClients(ctx, db.ListClientsParams{
		AfterName: name, Name: r.Params.Name, Type: r.Params.Type, Enabled: r.Params.Enabled, Valid: r.Params.Valid, RowLimit: limit + 1,
	})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(c db.Client) string { return c.Name })
	return api.ListClients200JSONResponse{Items: each(rows, client), NextCursor: cursor}, nil
}

// UpdateClient implements the contract's operation.
func (s *Server) UpdateClient(ctx context.Context, r api.UpdateClientRequestObject) (api.UpdateClientResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	metadata, err := storablePatch(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	patch, err := storablePatch(r.Body.Config)
	if err != nil {
		return nil, at("/config", err)
	}
	change := db.UpdateClientParams{ID: r.ClientId, IfMatch: expected, Name: r.Body.Name, Description: r.Body.Description, Enabled: r.Body.Enabled, MetadataPatch: metadata}
	var row db.Client
	for range 4 { // a config is judged as it will be, and written if nobody was faster
		if patch != nil {
			change.IfMatch = expected
			if err := s.patchConfig(ctx, patch, &change); err != nil {
				return nil, err
			}
		}
		row, err = s.db.UpdateClient(ctx, change)
		if !errors.Is(err, pgx.ErrNoRows) || patch == nil || expected != nil {
			break
		}
	}
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error { _, err := s.db.GetClient(ctx, r.ClientId); return missing("client", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.UpdateClient200JSONResponse{Body: client(row), Headers: api.UpdateClient200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// patchConfig puts the config as the patch makes it into the change, judged, with the revision that it was made from.
func (s *Server) patchConfig(ctx context.Context, patch json.RawMessage, change *db.UpdateClientParams) error {
	row, err := s.db.PatchClientConfig(ctx, db.PatchClientConfigParams{ID: change.ID, ConfigPatch: patch})
	if err != nil {
		return missing("client", err)
	}
	if change.IfMatch == nil || *change.IfMatch == row.Revision {
		schema, known := clienttypes.Current()[row.Type]
		if !known {
			return refuse(db.ClientsTypeFkey, api.FieldError{Pointer: "/type", Message: "is not known to this hub"})
		}
		if faults := schema.Validate(given(row.Config)); faults != nil {
			return refuse("client_config_invalid", schemaFaults("/config", faults)...)
		}
		change.Config, change.SchemaVersion, change.IfMatch = row.Config, &schema.Version, &row.Revision
		return nil
	}
	return refuse("precondition_failed")
}

// DeleteClient implements the contract's operation.
func (s *Server) DeleteClient(ctx context.Context, r api.DeleteClientRequestObject) (api.DeleteClientResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	count, err := s.db.DeleteClient(ctx, db.DeleteClientParams{ID: r.ClientId, IfMatch: expected})
	if err == nil && count == 0 {
		err = untouched(expected, func() error { _, err := s.db.GetClient(ctx, r.ClientId); return missing("client", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteClient204Response{}, nil
}

// ValidateClients implements the contract's operation.
func (s *Server) ValidateClients(ctx context.Context, _ api.ValidateClientsRequestObject) (api.ValidateClientsResponseObject, error) {
	verdict := api.ClientValidation{Items: []api.InvalidClient{}}
	checked, invalid, err := judgeClients(ctx, func(fn func(*db.Queries) error) error { return fn(s.db) }, func(c db.ListClientsToValidateRow, faults []api.FieldError) {
		if len(verdict.Items) < 200 {
			verdict.Items = append(verdict.Items, api.InvalidClient{ClientId: c.ID, Name: c.Name, Type: c.Type, Errors: faults})
		}
	})
	if err != nil {
		return nil, err
	}
	verdict.Checked, verdict.Invalid = checked, invalid
	return api.ValidateClients200JSONResponse(verdict), nil
}

// Secrets -----------------------------------------------------------------------------------------------------------

// secretContext is what a secret's ciphertext is bound to, beside the key's version (C11). docs/secrets.md has it to the letter.
func secretContext(org, client uuid.UUID, name string) []byte {
	context := append([]byte("hub/client-secret\x00"), org[:]...)
	return append(append(context, client[:]...), name...)
}

const rememberedKeys = 10_000

// callerOrg is the caller's organisation, which a secret is bound to before the statement that tells which it is: without asking,
// where the key was seen before, as a key's organisation never changes. It lets nobody do anything: the next statement checks the key.
func (s *Server) callerOrg(ctx context.Context) (uuid.UUID, error) {
	caller := store.CallerFrom(ctx)
	if caller.OrgID == uuid.Nil {
		if org, known := s.orgs.Get([32]byte(caller.KeyHash)); known {
			return org, nil
		}
		if err := s.store.Authenticate(ctx); err != nil {
			return uuid.Nil, err
		}
		s.orgs.Add([32]byte(caller.KeyHash), caller.OrgID)
	}
	return caller.OrgID, nil
}

// PutClientSecret implements the contract's operation.
func (s *Server) PutClientSecret(ctx context.Context, r api.PutClientSecretRequestObject) (api.PutClientSecretResponseObject, error) {
	metadata, err := storablePatch(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	ring := s.keys.Load()
	if ring.Primary() == 0 {
		return nil, refuse("encryption_not_configured")
	}
	org, err := s.callerOrg(ctx)
	if err != nil {
		return nil, err
	}
	ciphertext, err := ring.Seal(ring.Primary(), []byte(r.Body.Value), secretContext(org, r.ClientId, r.SecretName))
	if err != nil {
		return nil, err
	}
	row, err := s.db.PutClientSecret(ctx, db.PutClientSecretParams{
		BoundOrgID: org, ClientID: r.ClientId, Name: r.SecretName, KeyVersion: ring.Primary(), Ciphertext: ciphertext, Metadata: metadata,
	})
	if err != nil {
		return nil, missing("client", err)
	}
	secret := clientSecret(db.GetClientSecretRow{
		ID: row.ID, ClientID: row.ClientID, Name: row.Name, KeyVersion: row.KeyVersion, ValueChangedAt: row.ValueChangedAt,
		Metadata: row.Metadata, Revision: row.Revision, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
	})
	if row.Created {
		return api.PutClientSecret201JSONResponse{Body: secret, Headers: api.PutClientSecret201ResponseHeaders{
			ETag: etag(row.Revision), Location: secretPath(row.ClientID, row.Name),
		}}, nil
	}
	return api.PutClientSecret200JSONResponse{Body: secret, Headers: api.PutClientSecret200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// GetClientSecret implements the contract's operation.
func (s *Server) GetClientSecret(ctx context.Context, r api.GetClientSecretRequestObject) (api.GetClientSecretResponseObject, error) {
	row, err := s.db.GetClientSecret(ctx, db.GetClientSecretParams{ClientID: r.ClientId, Name: r.SecretName})
	if err != nil {
		return nil, missing("secret", err)
	}
	return api.GetClientSecret200JSONResponse{Body: clientSecret(row), Headers: api.GetClientSecret200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListClientSecrets implements the contract's operation.
func (s *Server) ListClientSecrets(ctx context.Context, r api.ListClientSecretsRequestObject) (api.ListClientSecretsResponseObject, error) {
	limit := pageSize(r.Params.Limit)
	name, further, err := after[string](r.Params.Cursor, r.ClientId)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListClientSecrets(ctx, db.ListClientSecretsParams{ClientID: r.ClientId, AfterName: name, RowLimit: limit + 1})
	if err == nil && len(rows) == 0 && !further { // no secrets, or no client
		_, err = s.db.GetClient(ctx, r.ClientId)
	}
	if err != nil {
		return nil, missing("client", err)
	}
	rows, cursor := next(rows, limit, r.ClientId, func(c db.ListClientSecretsRow) string { return c.Name })
	return api.ListClientSecrets200JSONResponse{
		Items:      each(rows, func(row db.ListClientSecretsRow) api.ClientSecret { return clientSecret(db.GetClientSecretRow(row)) }),
		NextCursor: cursor,
	}, nil
}

// DeleteClientSecret implements the contract's operation.
func (s *Server) DeleteClientSecret(ctx context.Context, r api.DeleteClientSecretRequestObject) (api.DeleteClientSecretResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	count, err := s.db.DeleteClientSecret(ctx, db.DeleteClientSecretParams{ClientID: r.ClientId, Name: r.SecretName, IfMatch: expected})
	if err == nil && count == 0 {
		err = untouched(expected, func() error {
			_, err := s.db.GetClientSecret(ctx, db.GetClientSecretParams{ClientID: r.ClientId, Name: r.SecretName})
			return missing("secret", err)
		})
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteClientSecret204Response{}, nil
}

// RevealClientSecret implements the contract's operation.
func (s *Server) RevealClientSecret(ctx context.Context, r api.RevealClientSecretRequestObject) (api.RevealClientSecretResponseObject, error) {
	row, err := s.db.RevealClientSecret(ctx, db.RevealClientSecretParams{ClientID: r.ClientId, Name: r.SecretName})
	if err != nil {
		return nil, missing("secret", err)
	}
	ring := s.keys.Load()
	bound := secretContext(row.OrgID, row.ClientID, row.Name)
	value, err := ring.Open(row.KeyVersion, row.Ciphertext, bound)
	switch {
	case errors.Is(err, keyring.ErrNoKey):
		return nil, refuse("secret_key_unavailable")
	case err != nil:
		s.Log.LogAttrs(ctx, slog.LevelError, "a stored secret is not what was put", slog.String("org", row.OrgID.String()), slog.String("client", row.ClientID.String()), slog.String("secret", row.Name))
		return nil, refuse("secret_damaged")
	}
	// Towards newer keys only: while the replicas are given their keys, one by one, those that have the old list would undo it.
	// Nor where it would be a part of the request's own transaction, which fails with it.
	if row.KeyVersion < ring.Primary() && !store.InTx(ctx) {
		s.reencrypt(ctx, ring, row, value, bound)
	}
	return api.RevealClientSecret200JSONResponse{
		Body:    api.RevealedSecret{Name: row.Name, Value: string(value), ValueChangedAt: row.ValueChangedAt},
		Headers: api.RevealClientSecret200ResponseHeaders{CacheControl: "no-store", Location: secretPath(row.ClientID, row.Name)},
	}, nil
}

// reencrypt puts a secret that was revealed under the present key. The reader does not fail for it.
func (s *Server) reencrypt(ctx context.Context, ring *keyring.Ring, row db.RevealClientSecretRow, value, bound []byte) {
	ciphertext, err := ring.Seal(ring.Primary(), value, bound)
	var count int64
	if err == nil {
		count, err = s.db.ReencryptClientSecret(ctx, db.ReencryptClientSecretParams{ID: row.ID, KeyVersion: ring.Primary(), Ciphertext: ciphertext, OldCiphertext: row.Ciphertext})
	}
	if err != nil {
		s.Log.LogAttrs(ctx, slog.LevelWarn, "a revealed secret stays under its old key", slog.String("secret", row.ID.String()), slog.String("cause", logged(err)))
		return
	}
	s.metrics.secretsReencrypted.WithLabelValues("reveal").Add(float64(count))
}

// Encryption keys ---------------------------------------------------------------------------------------------------

// ListEncryptionKeys implements the contract's operation.
func (s *Server) ListEncryptionKeys(ctx context.Context, _ api.ListEncryptionKeysRequestObject) (api.ListEncryptionKeysResponseObject, error) {
	rows, err := s.db.ListEncryptionKeys(ctx)
	if err != nil {
		return nil, err
	}
	ring := s.keys.Load()
	return api.ListEncryptionKeys200JSONResponse{Items: each(rows, func(k db.ListEncryptionKeysRow) api.EncryptionKey {
		return api.EncryptionKey{
			Version: k.Version, Fingerprint: hex.EncodeToString(k.Fingerprint), Secrets: k.Secrets,
			Held: ring.Holds(k.Version), Primary: k.Version == ring.Primary(), CreatedAt: k.CreatedAt,
		}
	})}, nil
}

// DeleteEncryptionKey implements the contract's operation.
func (s *Server) DeleteEncryptionKey(ctx context.Context, r api.DeleteEncryptionKeyRequestObject) (api.DeleteEncryptionKeyResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	if expected != nil && *expected != 1 {
		return nil, refuse("precondition_failed")
	}
	if s.keys.Load().Holds(r.KeyVersion) {
		return nil, refuse("encryption_key_held")
	}
	removed, err := s.db.RemoveEncryptionKey(ctx, r.KeyVersion)
	if err == nil && !removed {
		err = notFound("encryption_key")
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteEncryptionKey204Response{}, nil
}

// StartSecretRotation implements the contract's operation.
func (s *Server) StartSecretRotation(ctx context.Context, _ api.StartSecretRotationRequestObject) (api.StartSecretRotationResponseObject, error) {
	target := s.keys.Load().Primary()
	if target == 0 {
		return nil, refuse("encryption_not_configured")
	}
	id, err := s.db.StartSecretRotation(ctx, target)
	if err != nil {
		return nil, err
	}
	select {
	case s.rotate <- struct{}{}:
	default: // it is awake
	}
	row, err := s.db.GetSecretRotation(ctx, id)
	if err != nil {
		return nil, err
	}
	return api.StartSecretRotation202JSONResponse{
		Body: secretRotation(row), Headers: api.StartSecretRotation202ResponseHeaders{Location: "/v1/secret-rotations/" + id.String()},
	}, nil
}

// GetSecretRotation implements the contract's operation.
func (s *Server) GetSecretRotation(ctx context.Context, r api.GetSecretRotationRequestObject) (api.GetSecretRotationResponseObject, error) {
	row, err := s.db.GetSecretRotation(ctx, r.RotationId)
	if err != nil {
		return nil, missing("secret_rotation", err)
	}
	return api.GetSecretRotation200JSONResponse(secretRotation(row)), nil
}

func client(c db.Client) api.ServiceClient {
	return api.ServiceClient{
		Id: c.ID, Name: c.Name, Type: c.Type, SchemaVersion: c.SchemaVersion, Description: c.Description, Enabled: c.Enabled, Config: given(c.Config),
		Valid: c.Valid, ValidatedAt: c.ValidatedAt, Metadata: given(c.Metadata), Revision: c.Revision, CreatedAt: c.CreatedAt, UpdatedAt: c.UpdatedAt,
	}
}

func secretPath(client uuid.UUID, name string) string {
	return fmt.Sprintf("/v1/clients/%s/secrets/%s", client, name)
}

func clientSecret(c db.GetClientSecretRow) api.ClientSecret {
	return api.ClientSecret{
		Id: c.ID, ClientId: c.ClientID, Name: c.Name, KeyVersion: c.KeyVersion, ValueChangedAt: c.ValueChangedAt,
		Metadata: given(c.Metadata), Revision: c.Revision, CreatedAt: c.CreatedAt, UpdatedAt: c.UpdatedAt,
	}
}

func secretRotation(r db.GetSecretRotationRow) api.SecretRotation {
	return api.SecretRotation{
		Id: r.ID, TargetVersion: r.TargetVersion, Status: api.SecretRotationStatus(r.Status), Total: r.Total, Rotated: r.Rotated, Remaining: r.Remaining,
		Failed: r.Failed, CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt, EndedAt: r.EndedAt,
	}
}
