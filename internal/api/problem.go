package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/labstack/echo/v4"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/pgjson"
)

// problem is an error that the client is told about (RFC 9457).
type problem struct {
	Status int
	Code   string
	Detail string
	Errors []api.FieldError
}

func (p *problem) Error() string { return p.Code + ": " + p.Detail }

// refuse is the problem with this code, of codes or the database's rules.
func refuse(code string, faults ...api.FieldError) *problem {
	r, ok := codes[code]
	if !ok {
		r, _ = ruleNamed(code)
	}
	if r.pointer != "" && faults == nil {
		faults = []api.FieldError{{Pointer: r.pointer, Message: r.detail}}
	}
	return &problem{Status: r.status, Code: code, Detail: r.detail, Errors: faults}
}

func notFound(noun string) *problem { return refuse(noun + "_not_found") }

func tooLarge(limit int64) *problem {
	return refuse("body_too_large", api.FieldError{Pointer: "", Message: fmt.Sprintf("must be at most %d bytes long", limit)})
}

// rule says how a refusal of the database is told (X02).
type rule struct {
	status  int
	detail  string
	pointer string // what of the body it is about, where that is one field
}

// The statuses of rules: what the request holds cannot be (422), what is there already stands against it (409).
const (
	invalid  = http.StatusUnprocessableEntity
	conflict = http.StatusConflict
)

// codes are the server's own problems: what is refused before or beside the database's rules.
var codes = map[string]rule{
	"unsupported_media_type": {status: http.StatusUnsupportedMediaType, detail: "The body has not the media type that the operation takes."},
	"invalid_request":        {status: http.StatusBadRequest, detail: "The request is not what the contract asks for."},
	"invalid_json":           {status: http.StatusBadRequest, detail: "The JSON is not valid, or not what is expected here."},
	"invalid_cursor":         {status: http.StatusBadRequest, detail: "The cursor is not one of this list with these filters."},
	"invalid_value":          {status: http.StatusBadRequest, detail: "A value cannot be stored."},
	"not_permitted":          {status: http.StatusForbidden, detail: "The key is limited to other projects, or the database does not permit this."},
	"route_not_found":        {status: http.StatusNotFound, detail: "There is nothing at this path. See /docs."},
	"method_not_allowed":     {status: http.StatusMethodNotAllowed, detail: "The path is right, the method is not. See the Allow header."},
	"loopback_only":          {status: http.StatusForbidden, detail: "This is only for requests from the hub's own machine, and not through a proxy."},
	"precondition_failed":    {status: http.StatusPreconditionFailed, detail: "The resource has changed: its ETag is no longer the one in If-Match."},
	"body_incomplete":        {status: http.StatusBadRequest, detail: "The body ended before it was complete, or did not arrive in time."},
	"body_too_large":         {status: http.StatusRequestEntityTooLarge, detail: "The body is larger than the server takes."},
	"value_too_large":        {status: http.StatusRequestEntityTooLarge, detail: "A value is larger or deeper than the database can hold."},
	"internal":               {status: http.StatusInternalServerError, detail: "Something is wrong on the server. The request id names what was logged."},
	"try_again":              {status: http.StatusServiceUnavailable, detail: "Others were changing the same rows. Try again."},
	"timeout":                {status: http.StatusServiceUnavailable, detail: "The request took too long."},
	"database_unavailable":   {status: http.StatusServiceUnavailable, detail: "The database does not answer."},
	"storage_unavailable":    {status: http.StatusServiceUnavailable, detail: "The server cannot put the file aside."},

	"rate_limited":                     {status: http.StatusTooManyRequests, detail: "The key has sent too many requests. Retry-After says when to go on."},
	"idempotency_in_progress":          {status: conflict, detail: "A request with this Idempotency-Key is still running."},
	"idempotency_key_reused":           {status: invalid, detail: "This Idempotency-Key was used for another request.", pointer: "header:Idempotency-Key"},
	"idempotency_secret_already_shown": {status: conflict, detail: "This request was answered before, with a secret that is shown only once. Location names what was made."},

	"account_not_found":      {status: http.StatusNotFound, detail: "There is no such account, or it is not yours to see."},
	"organization_not_found": {status: http.StatusNotFound, detail: "There is no such organisation, or it is not yours."},
	"api_key_not_found":      {status: http.StatusNotFound, detail: "There is no such key, or it is not yours to see."},
	"member_not_found":       {status: http.StatusNotFound, detail: "The organisation has no such member."},

	"session_born_here":      {status: conflict, detail: "The session was born in this hub and is here still."},
	"invalid_archive":        {status: http.StatusBadRequest, detail: "The body is no zip archive of session exports."},
	"fork_message_not_found": {status: invalid, detail: "The session has no such message.", pointer: "/messageId"},
	"project_not_found":      {status: http.StatusNotFound, detail: "There is no such project, or it is not yours."},
	"workspace_not_found":    {status: http.StatusNotFound, detail: "There is no such workspace, or it is not yours."},
	"session_not_found":      {status: http.StatusNotFound, detail: "There is no such session, or it is not yours."},
	"role_not_found":         {status: http.StatusNotFound, detail: "There is no such role, or it is not yours."},
	"role_file_invalid":      {status: invalid, detail: "A role file cannot be read. No role was changed."},
	"role_in_other_set":      {status: conflict, detail: "Another set of files has a role of this name. No role was changed."},
	"part_not_found":         {status: http.StatusNotFound, detail: "There is no such part in the session, or it is not yours."},
	"part_data_invalid":      {status: invalid, detail: "With this change the part would not be what its type asks for."},
	"message_not_found":      {status: http.StatusNotFound, detail: "There is no such message in the session, or it is not yours."},

	"spoke_not_found":          {status: http.StatusNotFound, detail: "There is no such spoke, or it is not yours."},
	"operation_not_found":      {status: http.StatusNotFound, detail: "No spoke offers such an operation, or it is not yours to see."},
	"operation_twice":          {status: invalid, detail: "An operation is offered twice."},
	"operation_schema_invalid": {status: invalid, detail: "This is no JSON Schema (2020-12) that refers to nothing outside of itself."},

	"call_not_found":      {status: http.StatusNotFound, detail: "There is no such call, or it is not yours to see."},
	"call_input_invalid":  {status: invalid, detail: "The input is not what the operation takes."},
	"call_output_invalid": {status: invalid, detail: "The output is not what the operation says that it puts out."},

	"client_not_found":          {status: http.StatusNotFound, detail: "There is no such client, or it is not yours."},
	"client_config_invalid":     {status: invalid, detail: "The config is not what the type's schema asks for."},
	"secret_not_found":          {status: http.StatusNotFound, detail: "The client has no such secret, or it is not yours."},
	"secret_key_unavailable":    {status: http.StatusFailedDependency, detail: "The secret is under a key that this hub does not hold. It can be revealed once the key is back, or put anew."},
	"secret_damaged":            {status: http.StatusFailedDependency, detail: "What is stored is not what was put: it was altered, or copied here from another place. Put the secret anew."},
	"encryption_not_configured": {status: http.StatusFailedDependency, detail: "This hub holds no key to encrypt with: set HUB_ENCRYPTION_KEYS."},
	"encryption_key_not_found":  {status: http.StatusNotFound, detail: "There is no such key."},
	"encryption_key_held":       {status: conflict, detail: "This hub still holds the key: take it out of HUB_ENCRYPTION_KEYS first, everywhere."},
	"secret_rotation_not_found": {status: http.StatusNotFound, detail: "There is no such rotation."},

	"task_not_found":         {status: http.StatusNotFound, detail: "There is no such task, or it is not yours."},
	"dependency_not_found":   {status: http.StatusNotFound, detail: "The task does not depend on that one."},
	"detection_not_found":    {status: http.StatusNotFound, detail: "There is no such detection, or it is not yours."},
	"anomaly_type_not_found": {status: http.StatusNotFound, detail: "There is no such anomaly type, or it is not yours."},
	"mapping_not_found":      {status: http.StatusNotFound, detail: "There is no such mapping, or it is not yours."},

	"task_dependency_not_found": {status: invalid, detail: "A task depends on tasks of its project."},
}

// rules is the one table from a rule's name to what the client is told. A rule of the database that is missing here fails
// TestX02_EveryRuleHasAnAnswer. A foreign key has two entries: its name for a write that refers to nothing, and _in_use for
// deleting what is referred to. NOT NULL has none: see required.
var rules = map[string]rule{
	db.Unauthenticated:   {status: http.StatusUnauthorized, detail: "The request carries no valid key."},
	db.InsufficientScope: {status: http.StatusForbidden, detail: "The key lacks a scope that the operation needs."},
	db.InsufficientLevel: {status: http.StatusForbidden, detail: "The account has not the membership level that the operation needs."},

	db.ActingSessionNotFound: {status: invalid, detail: "There is no such session.", pointer: "header:Hub-Session"},

	db.AccountIsDeactivated: {status: invalid, detail: "The account is deactivated.", pointer: "/accountId"},

	db.AccountsAccessLevelByPlatformAdmin: {status: http.StatusForbidden, detail: "Only a platform admin gives or takes an access level.", pointer: "/accessLevel"},
	db.AccountsDeletedByPlatformAdmin:     {status: http.StatusForbidden, detail: "Only a platform admin deletes an account."},
	db.AccountsEmailDomain:                {status: invalid, detail: "Accounts of kind llm or service have addresses at reserved domains, people have not.", pointer: "/email"},
	db.AccountsHomeOrgIDFkey:              {status: invalid, detail: "There is no such organisation."},
	db.AccountsHomeOrgIDFkeyInUse:         {status: conflict, detail: "The organisation still is the home of accounts."},
	db.AccountsHomeOrgImmutable:           {status: conflict, detail: "An account keeps its home organisation."},
	db.AccountsLevelAndStatusNotOwn:       {status: http.StatusForbidden, detail: "Nobody changes their own access level or status."},
	db.AccountsProfileByItsManagers:       {status: http.StatusForbidden, detail: "A profile is changed with a key of its home organisation, by its account or an admin there, or by a platform admin."},
	db.AccountsStatusByPlatformAdmin:      {status: http.StatusForbidden, detail: "Only a platform admin changes an account's status."},
	db.AccountsStatusTransition:           {status: conflict, detail: "The account cannot go from its present status to this one."},

	db.AccountsAccessLevelCheck:       {status: invalid, detail: "An account's access level is admin or member.", pointer: "/accessLevel"},
	db.AccountsDisplayNameLengthCheck: {status: invalid, detail: "A display name has 1 to 200 characters.", pointer: "/displayName"},
	db.AccountsEmailKey:               {status: conflict, detail: "Another account has this e-mail address.", pointer: "/email"},
	db.AccountsEmailShapeCheck:        {status: invalid, detail: "This is no e-mail address.", pointer: "/email"},
	db.AccountsKindCheck:              {status: invalid, detail: "An account is human, llm or service.", pointer: "/kind"},
	db.AccountsStatusCheck:            {status: invalid, detail: "An account is active, suspended or deactivated.", pointer: "/status"},
	db.AccountsSystemKey:              {status: conflict, detail: "There is one system account."},
	db.AccountsSystemFixed:            {status: http.StatusForbidden, detail: "The system account cannot be changed or deleted."},

	db.ApiKeysKeyHashKey:            {status: conflict, detail: "This key exists already."},
	db.ApiKeysKeyHashLengthCheck:    {status: invalid, detail: "A key's hash has 32 bytes."},
	db.ApiKeysMemberFkey:            {status: invalid, detail: "The account is no member of this organisation.", pointer: "/accountId"},
	db.ApiKeysMemberFkeyInUse:       {status: conflict, detail: "The member still has keys."},
	db.ApiKeysNameLengthCheck:       {status: invalid, detail: "A key's name has 1 to 200 characters.", pointer: "/name"},
	db.ApiKeysScopesKnownShapeCheck: {status: invalid, detail: "A scope is noun:read, noun:write, noun:admin, * or platform:*.", pointer: "/scopes"},

	db.ClientSecretsCiphertextLengthCheck:    {status: invalid, detail: "A secret's value has 1 to 65,536 bytes.", pointer: "/value"},
	db.ClientSecretsClientIDFkey:             {status: invalid, detail: "There is no such client.", pointer: "/clientId"},
	db.ClientSecretsClientIDFkeyInUse:        {status: conflict, detail: "The client still has secrets."},
	db.ClientSecretsKeyVersionFkey:           {status: invalid, detail: "The key that this hub encrypts with is not known to the database any more: load the keys anew."},
	db.ClientSecretsKeyVersionFkeyInUse:      {status: conflict, detail: "Secrets are still under this key; rotate them first."},
	db.ClientSecretsNameKey:                  {status: conflict, detail: "The client has a secret with this name."},
	db.ClientSecretsNameShapeCheck:           {status: invalid, detail: "A secret's name has letters, digits, dots, dashes and underscores, at most 100."},
	db.ClientTypesSchemaFrozen:               {status: conflict, detail: "A registered schema never changes; a change is a new version."},
	db.ClientTypesSchemaObjectCheck:          {status: invalid, detail: "A schema is a JSON object."},
	db.ClientTypesSchemaVersionCheck:         {status: invalid, detail: "A schema's version is a number above zero."},
	db.ClientTypesTypeShapeCheck:             {status: invalid, detail: "A client type has lower-case letters and digits in groups joined by dashes."},
	db.ClientsConfigObjectCheck:              {status: invalid, detail: "A config is a JSON object.", pointer: "/config"},
	db.ClientsDescriptionLengthCheck:         {status: invalid, detail: "A description has at most 10,000 characters.", pointer: "/description"},
	db.ClientsNameKey:                        {status: conflict, detail: "Another client has this name.", pointer: "/name"},
	db.ClientsNameShapeCheck:                 {status: invalid, detail: slugShape, pointer: "/name"},
	db.ClientsOrgIDFkey:                      {status: invalid, detail: "There is no such organisation."},
	db.ClientsOrgIDFkeyInUse:                 {status: conflict, detail: "The organisation still has clients."},
	db.ClientsTypeFkey:                       {status: invalid, detail: "There is no such client type.", pointer: "/type"},
	db.ClientsTypeFkeyInUse:                  {status: conflict, detail: "Clients still are of this type."},
	db.ClientsValidIsValidatedCheck:          {status: invalid, detail: "What was not validated is not valid."},
	db.EncryptionKeysForAdmins:               {status: http.StatusForbidden, detail: "The keys of the platform are for its admins: they take the scope platform:*."},
	db.EncryptionKeysFingerprintKey:          {status: conflict, detail: "This key is known under another version."},
	db.EncryptionKeysFingerprintKnown:        {status: conflict, detail: "Another key is known under this version."},
	db.EncryptionKeysFingerprintLengthCheck:  {status: invalid, detail: "A fingerprint has 32 bytes."},
	db.EncryptionKeysVersionCheck:            {status: invalid, detail: "A key's version is a number above zero."},
	db.SecretRotationsCountsCheck:            {status: invalid, detail: "Counts are not negative."},
	db.SecretRotationsEndedFixed:             {status: conflict, detail: "A rotation that has ended stays as it is."},
	db.SecretRotationsEndedHasTimeCheck:      {status: invalid, detail: "A rotation has an end exactly when it is not running."},
	db.SecretRotationsRunningKey:             {status: conflict, detail: "A rotation is running already."},
	db.SecretRotationsStatusCheck:            {status: invalid, detail: "A rotation is running, completed or superseded."},
	db.SecretRotationsTargetVersionFkey:      {status: invalid, detail: "There is no such key."},
	db.SecretRotationsTargetVersionFkeyInUse: {status: conflict, detail: "Rotations still refer to the key."},

	db.ApiKeysExpiresAfterCreationCheck: {status: invalid, detail: "A key ends after it was made.", pointer: "/expiresAt"},
	db.ApiKeysExpiresInReachCheck:       {status: invalid, detail: "A key ends before the year 9999 does.", pointer: "/expiresAt"},
	db.ApiKeysGraceOnlyShrinks:          {status: conflict, detail: "A key that was rotated cannot be prolonged.", pointer: "/expiresAt"},
	db.ApiKeysHolderWithinLevel:         {status: http.StatusForbidden, detail: "Keys of others are made and changed by admins, owners' keys by owners, and the accountable owner's made by nobody else."},
	db.ApiKeysPlatformScopeForAdmins:    {status: invalid, detail: "The scope platform:* is for keys of admin accounts.", pointer: "/scopes"},
	db.ApiKeysResourcesGranted:          {status: http.StatusForbidden, detail: "A limited key makes and changes only keys that are limited as much.", pointer: "/resources"},
	db.ApiKeysResourcesShapeCheck:       {status: invalid, detail: "A resource is project:<id>; a key has at most 100.", pointer: "/resources"},
	db.ApiKeysRevokedForGood:            {status: conflict, detail: "The key is revoked, for good."},
	db.ApiKeysRotatedOnce:               {status: conflict, detail: "The key was rotated already."},
	db.ApiKeysRotatedToAnotherCheck:     {status: invalid, detail: "A key is followed by another one."},
	db.ApiKeysRotatedToIDFkey:           {status: invalid, detail: "There is no such key."},
	db.ApiKeysRotatedToIDFkeyInUse:      {status: conflict, detail: "The key takes another one's place."},
	db.ApiKeysScopesGranted:             {status: http.StatusForbidden, detail: "A key grants no scope that the key that makes it lacks.", pointer: "/scopes"},
	db.ApiKeysTagsShapeCheck:            {status: invalid, detail: "A tag has up to 50 lower-case letters, digits and . _ : / -; a key has at most 50.", pointer: "/tags"},

	db.AuditPlatformForAdmins:           {status: http.StatusForbidden, detail: "The platform's audit log is for platform admins: it takes the scope platform:*."},
	db.AuditChainsAnchorBehindHeadCheck: {status: invalid, detail: "A chain's anchor is behind its head."},
	db.AuditChainsForward:               {status: conflict, detail: "A chain only grows."},
	db.AuditChainsHashLengthCheck:       {status: invalid, detail: "A hash has 32 bytes."},
	db.AuditChainsKept:                  {status: conflict, detail: "An audit chain is kept."},
	db.AuditLogsActionShapeCheck:        {status: invalid, detail: "An action is noun.verb."},
	db.AuditLogsActorSourceCheck:        {status: invalid, detail: "A source is api, psql, bootstrap, worker or admin."},
	db.AuditLogsAppendOnly:              {status: conflict, detail: "The audit log is only added to."},
	db.AuditLogsChainIDFkey:             {status: invalid, detail: "There is no such chain."},
	db.AuditLogsChainIDFkeyInUse:        {status: conflict, detail: "The chain still has entries."},
	db.AuditLogsCreatedAtKey:            {status: conflict, detail: "Times in a chain only rise."},
	db.AuditLogsHashLengthCheck:         {status: invalid, detail: "A hash has 32 bytes."},
	db.AuditLogsNeverTruncated:          {status: conflict, detail: "The audit log is only added to."},
	db.AuditLogsOrgIDFkey:               {status: invalid, detail: "There is no such organisation."},
	db.AuditLogsOrgIDFkeyInUse:          {status: conflict, detail: "The audit log still refers to the organisation."},
	db.AuditLogsOrgIsChainCheck:         {status: invalid, detail: "An entry's organisation is its chain's."},
	db.AuditLogsOwnerIDFkey:             {status: invalid, detail: "There is no such account."},
	db.AuditLogsOwnerIDFkeyInUse:        {status: conflict, detail: "The account stands in the audit log as an actor: deactivate it instead."},
	db.AuditLogsPositionKey:             {status: conflict, detail: "The chain has an entry at this place."},
	db.AuditLogsRemovedBehindAnchor:     {status: conflict, detail: "The audit log is only added to; retention removes from the oldest on."},
	db.AuditLogsSessionIDFkey:           {status: invalid, detail: "There is no such session."},
	db.AuditLogsSessionIDFkeyInUse:      {status: conflict, detail: "The audit log still refers to the session."},

	db.IdempotencyKeysAccountIDFkey:      {status: invalid, detail: "The account is no member of this organisation."},
	db.IdempotencyKeysAccountIDFkeyInUse: {status: conflict, detail: "Answers are kept for the member."},
	db.IdempotencyKeysKeyKey:             {status: conflict, detail: "A request with this Idempotency-Key was faster."},
	db.IdempotencyKeysKeyLengthCheck:     {status: invalid, detail: "An Idempotency-Key has 1 to 255 characters.", pointer: "header:Idempotency-Key"},
	db.IdempotencyKeysRequestLengthCheck: {status: invalid, detail: "A request's hash has 32 bytes."},
	db.IdempotencyKeysStatusCheck:        {status: invalid, detail: "What is kept are answers of success."},

	db.MessagesInOrder:             {status: conflict, detail: "Ids within a session follow the order of writing."},
	db.MessagesRoleCheck:           {status: invalid, detail: "A message's role is user, assistant or system.", pointer: "/role"},
	db.MessagesSessionIDFkey:       {status: invalid, detail: "There is no such session.", pointer: "/sessionId"},
	db.MessagesSessionIDFkeyInUse:  {status: conflict, detail: "The session still has messages."},
	db.MessagesSessionIDIDKey:      {status: conflict, detail: "The session has a message with this id already."},
	db.MessagesSessionImmutable:    {status: conflict, detail: "A message stays in its session."},
	db.MessagesSourceIDLengthCheck: {status: invalid, detail: "An id in the source has 1 to 200 bytes."},
	db.MessagesSourceShapeCheck:    {status: invalid, detail: "A source's name has lower-case letters, digits and dashes."},
	db.MessagesSourceSourceIDKey:   {status: conflict, detail: "This message was imported already."},
	db.MessagesSourceWholeCheck:    {status: invalid, detail: "An imported message has a source, an id there and a place."},

	db.OrganizationMembersAccountIDFkey:      {status: invalid, detail: "There is no such account.", pointer: "/accountId"},
	db.OrganizationMembersAccountIDFkeyInUse: {status: conflict, detail: "The account still is a member of an organisation."},
	db.OrganizationMembersLevelCheck:         {status: invalid, detail: "A membership level is owner, admin or member.", pointer: "/membershipLevel"},
	db.OrganizationMembersLevelKey:           {status: conflict, detail: "The account is a member already."},
	db.OrganizationMembersOrgIDFkey:          {status: invalid, detail: "There is no such organisation."},
	db.OrganizationMembersOrgIDFkeyInUse:     {status: conflict, detail: "The organisation still has members."},
	db.OrganizationMembersNotSystemCheck:     {status: invalid, detail: "The system account works nowhere.", pointer: "/accountId"},
	db.OrganizationMembersLevelGranted:       {status: http.StatusForbidden, detail: "Members are added, changed and removed by admins, and owners by owners."},
	db.OrganizationsNewOwnerIsMember:         {status: invalid, detail: "The new owner is no member of the organisation.", pointer: "/accountId"},
	db.OrganizationsTransferredByOwner:       {status: http.StatusForbidden, detail: "An organisation is handed over by its accountable owner, or by a platform admin."},
	db.OrganizationsNameLengthCheck:          {status: invalid, detail: "An organisation's name has 1 to 200 characters.", pointer: "/name"},
	db.OrganizationsOwnerIDFkey:              {status: invalid, detail: "There is no such account.", pointer: "/ownerId"},
	db.OrganizationsOwnerIDFkeyInUse:         {status: conflict, detail: "The account owns an organisation; transfer the ownership first."},
	db.OrganizationsOwnerIsMemberFkey:        {status: conflict, detail: "An organisation's owner is a member at level owner; transfer the ownership first."},
	db.OrganizationsOwnerIsMemberFkeyInUse:   {status: conflict, detail: "The member is the organisation's owner; transfer the ownership first."},
	db.OrganizationsSlugKey:                  {status: conflict, detail: "Another organisation has this slug.", pointer: "/slug"},
	db.OrganizationsSlugShapeCheck:           {status: invalid, detail: slugShape, pointer: "/slug"},

	db.EventHeadsPurgedBehindLastCheck: {status: invalid, detail: "What is no longer kept of a feed lies behind its head."},
	db.EventSequencersSingletonCheck:   {status: invalid, detail: "There is one office of the sequencer."},
	db.EventsAppendOnly:                {status: conflict, detail: "Events are only ever added."},
	db.PendingEventsActionCheck:        {status: invalid, detail: "A row is created, updated, deleted, or streams."},
	db.PendingEventsKindCheck:          {status: invalid, detail: "This is no kind of event."},

	db.PartDeltasAppendOnly:       {status: conflict, detail: "Deltas are only ever added."},
	db.PartDeltasContiguous:       {status: conflict, detail: "The delta leaves a gap in the text, or says something else than what is there.", pointer: "/offset"},
	db.PartDeltasPartIDFkey:       {status: invalid, detail: "There is no such part."},
	db.PartDeltasPartIDFkeyInUse:  {status: conflict, detail: "Text is still streaming into the part."},
	db.PartDeltasTextLengthCheck:  {status: invalid, detail: "A delta has at least one character.", pointer: "/text"},
	db.PartDeltasWholeLengthCheck: {status: invalid, detail: "A text that streams in has at most 16,777,216 UTF-16 code units.", pointer: "/text"},
	db.PartTakesNoDeltas:          {status: conflict, detail: "Text grows in text and reasoning parts, in parts of unknown types with a text, and in tools that are pending or running."},

	db.PartsToolStateFkey:       {status: invalid, detail: "A tool is pending, running, completed or error.", pointer: "/data/state/status"},
	db.PartsToolStateFkeyInUse:  {status: conflict, detail: "Tool calls still are in this state."},
	db.PartsToolStateTransition: {status: conflict, detail: "The tool call cannot go from its present state to this one.", pointer: "/data/state/status"},
	db.PartsInOrder:             {status: conflict, detail: "Ids within a session follow the order of writing."},
	db.PartsMessageIDFkey:       {status: invalid, detail: "The session has no such message.", pointer: "/messageId"},
	db.PartsMessageIDFkeyInUse:  {status: conflict, detail: "The message still has parts."},
	db.PartsSessionImmutable:    {status: conflict, detail: "A part stays in its message and session."},
	db.PartsSourceIDLengthCheck: {status: invalid, detail: "An id in the source has 1 to 200 bytes."},
	db.PartsSourceShapeCheck:    {status: invalid, detail: "A source's name has lower-case letters, digits and dashes."},
	db.PartsSourceSourceIDKey:   {status: conflict, detail: "This part was imported already."},
	db.PartsSourceWholeCheck:    {status: invalid, detail: "An imported part has a source, an id there and a place."},
	db.PartsTypeLengthCheck:     {status: invalid, detail: "A part's type has 1 to 200 bytes.", pointer: "/type"},

	db.ProjectsDescriptionLengthCheck: {status: invalid, detail: "A description has at most 10,000 characters.", pointer: "/description"},
	db.ProjectsNameLengthCheck:        {status: invalid, detail: "A project's name has 1 to 200 characters.", pointer: "/name"},
	db.ProjectsOrgIDFkey:              {status: invalid, detail: "There is no such organisation."},
	db.ProjectsOrgIDFkeyInUse:         {status: conflict, detail: "The organisation still has projects."},
	db.ProjectsSlugKey:                {status: conflict, detail: "Another project has this slug.", pointer: "/slug"},
	db.ProjectsSlugShapeCheck:         {status: invalid, detail: slugShape, pointer: "/slug"},

	db.SpokeOfAnotherAccount:                     {status: http.StatusForbidden, detail: "A spoke is its account's: nobody else speaks for it, but admins."},
	db.SpokeEpochStale:                           {status: conflict, detail: "This connection of the spoke has ended. Register again.", pointer: "/epoch"},
	db.SpokesByTheirAccount:                      {status: http.StatusForbidden, detail: "A spoke is its account's: nobody else speaks for it, but admins."},
	db.SpokesAccountIDFkey:                       {status: invalid, detail: "The account is no member of this organisation."},
	db.SpokesAccountIDFkeyInUse:                  {status: conflict, detail: "The member still has spokes."},
	db.SpokesDisconnectedHasTimeCheck:            {status: invalid, detail: "A spoke that is disconnected has the time of it, and no other."},
	db.SpokesEpochCheck:                          {status: invalid, detail: "An epoch is at least 1.", pointer: "/epoch"},
	db.SpokesEpochRises:                          {status: conflict, detail: "A spoke's epoch only rises."},
	db.SpokesGraceSecondsCheck:                   {status: invalid, detail: "A grace period has at most 86,400 seconds.", pointer: "/graceSeconds"},
	db.SpokesLeaseSecondsCheck:                   {status: invalid, detail: "A lease has 1 to 3,600 seconds.", pointer: "/leaseSeconds"},
	db.SpokesNameKey:                             {status: conflict, detail: "Another spoke has this name.", pointer: "/name"},
	db.SpokesNameShapeCheck:                      {status: invalid, detail: "A spoke's name has letters, digits and . _ -, at most 100.", pointer: "/name"},
	db.SpokesOrgIDFkey:                           {status: invalid, detail: "There is no such organisation."},
	db.SpokesOrgIDFkeyInUse:                      {status: conflict, detail: "The organisation still has spokes."},
	db.SpokesStatusFkey:                          {status: invalid, detail: "There is no such status.", pointer: "/status"},
	db.SpokesStatusFkeyInUse:                     {status: conflict, detail: "Spokes still have this status."},
	db.SpokesStatusTransition:                    {status: conflict, detail: "The spoke cannot go from its present status to this one."},
	db.SpokesVersionLengthCheck:                  {status: invalid, detail: "A version has at most 100 characters.", pointer: "/version"},
	db.SpokeStatusTransitionsFromStatusFkey:      {status: invalid, detail: "There is no such status."},
	db.SpokeStatusTransitionsFromStatusFkeyInUse: {status: conflict, detail: "Transitions still refer to the status."},
	db.SpokeStatusTransitionsToStatusFkey:        {status: invalid, detail: "There is no such status."},
	db.SpokeStatusTransitionsToStatusFkeyInUse:   {status: conflict, detail: "Transitions still refer to the status."},

	db.CallAbortedByCaller:                      {status: http.StatusForbidden, detail: "A call is aborted by its caller, by its spoke, or by an admin."},
	db.CallHeldByConnection:                     {status: conflict, detail: "This connection does not hold the call: it was given back, or is another spoke's."},
	db.CallNotOver:                              {status: conflict, detail: "The call is over already."},
	db.CallStartedOnce:                          {status: conflict, detail: "The call was started already."},
	db.CallEdgeRowsNotTriggeredCheck:            {status: invalid, detail: "That a call triggered another is said by parentId alone."},
	db.CallEdgeRowsSourceCallIDFkey:             {status: invalid, detail: "There is no such call."},
	db.CallEdgeRowsSourceCallIDFkeyInUse:        {status: conflict, detail: "The call still has edges."},
	db.CallEdgeRowsSourceTargetTypeKey:          {status: conflict, detail: "This edge is there already."},
	db.CallEdgeRowsTargetCallIDFkey:             {status: invalid, detail: "There is no such call.", pointer: "/edges"},
	db.CallEdgeRowsTargetCallIDFkeyInUse:        {status: conflict, detail: "The call still has edges."},
	db.CallEdgeRowsTwoCallsCheck:                {status: invalid, detail: "An edge is between two calls.", pointer: "/edges"},
	db.CallEdgeRowsTypeFkey:                     {status: invalid, detail: "There is no such type of edge.", pointer: "/edges"},
	db.CallEdgeRowsTypeFkeyInUse:                {status: conflict, detail: "Edges still have this type."},
	db.CallPayloadsCallIDDirectionKey:           {status: conflict, detail: "The call has this payload already."},
	db.CallPayloadsCallIDFkey:                   {status: invalid, detail: "There is no such call."},
	db.CallPayloadsCallIDFkeyInUse:              {status: conflict, detail: "The call still has payloads."},
	db.CallPayloadsKeyVersionFkey:               {status: invalid, detail: "There is no such encryption key."},
	db.CallPayloadsKeyVersionFkeyInUse:          {status: conflict, detail: "Payloads on their way are encrypted with this key."},
	db.CallPayloadsDirectionCheck:               {status: invalid, detail: "A payload is an input or an output."},
	db.CallPayloadsSizeCheck:                    {status: invalid, detail: "An input, and an output, has at most 8 MiB."},
	db.CallStatusTransitionsFromStatusFkey:      {status: invalid, detail: "There is no such status."},
	db.CallStatusTransitionsFromStatusFkeyInUse: {status: conflict, detail: "Transitions still refer to the status."},
	db.CallStatusTransitionsToStatusFkey:        {status: invalid, detail: "There is no such status."},
	db.CallStatusTransitionsToStatusFkeyInUse:   {status: conflict, detail: "Transitions still refer to the status."},
	db.CallsAttemptsCheck:                       {status: invalid, detail: "The call was started as often as it may be."},
	db.CallsCallerAccountIDFkey:                 {status: invalid, detail: "The account is no member of this organisation."},
	db.CallsCallerAccountIDFkeyInUse:            {status: conflict, detail: "The member still has calls."},
	db.CallsEndedByCheck:                        {status: invalid, detail: "A call is ended by its spoke, caller, deadline, parent, the loss of its spoke, or who records it."},
	db.CallsEndedWholeCheck:                     {status: invalid, detail: "A call that is over has the time of it, and who ended it; no other has."},
	db.CallsErrorCodeLengthCheck:                {status: invalid, detail: "An error code has 1 to 200 characters.", pointer: "/errorCode"},
	db.CallsHeldWholeCheck:                      {status: invalid, detail: "A call that is dispatched or runs is held by a connection."},
	db.CallsIdentityObjectCheck:                 {status: invalid, detail: "An identity is a JSON object."},
	db.CallsKindCheck:                           {status: invalid, detail: "A call is of a query, a mutation or a subscription.", pointer: "/kind"},
	db.CallsLinksKept:                           {status: conflict, detail: "A call keeps its parent, session and caller."},
	db.CallsNotOwnParentCheck:                   {status: invalid, detail: "A call cannot be its own parent.", pointer: "/parentId"},
	db.CallsOperationLengthCheck:                {status: invalid, detail: "An operation's name has 1 to 200 characters.", pointer: "/operation"},
	db.CallsOrgIDFkey:                           {status: invalid, detail: "There is no such organisation."},
	db.CallsOrgIDFkeyInUse:                      {status: conflict, detail: "The organisation still has calls."},
	db.CallsParentAlive:                         {status: conflict, detail: "The call that makes this one is over.", pointer: "/parentId"},
	db.CallsParentIDFkey:                        {status: invalid, detail: "There is no such parent call.", pointer: "/parentId"},
	db.CallsParentIDFkeyInUse:                   {status: conflict, detail: "The call still has children."},
	db.CallsPayloadLimitCheck:                   {status: invalid, detail: "A payload limit is at most 1,048,576 bytes.", pointer: "/payloadLimit"},
	db.CallsRecordedByCaller:                    {status: http.StatusForbidden, detail: "A call is recorded by who made it, or by admins."},
	db.CallsRedactPathsShapeCheck:               {status: invalid, detail: "Redact paths are at most 100 JSON pointers.", pointer: "/redactPaths"},
	db.CallsRequestIDKey:                        {status: conflict, detail: "Another call was made under this request id.", pointer: "/requestId"},
	db.CallsRequestIDLengthCheck:                {status: invalid, detail: "A request id has 1 to 255 bytes.", pointer: "/requestId"},
	db.CallsRoutedHasDeadlineCheck:              {status: invalid, detail: "A call that the hub routes has a deadline."},
	db.CallsSessionIDFkey:                       {status: invalid, detail: "There is no such session.", pointer: "/sessionId"},
	db.CallsSessionIDFkeyInUse:                  {status: conflict, detail: "The session still has calls."},
	db.CallsSpokeIDFkey:                         {status: invalid, detail: "There is no such spoke."},
	db.CallsSpokeIDFkeyInUse:                    {status: conflict, detail: "The spoke still has calls."},
	db.CallsStartedBeforeEndedCheck:             {status: invalid, detail: "A call starts before it ends.", pointer: "/endedAt"},
	db.CallsStatusFkey:                          {status: invalid, detail: "There is no such status.", pointer: "/status"},
	db.CallsStatusFkeyInUse:                     {status: conflict, detail: "Calls still have this status."},
	db.CallsStatusTransition:                    {status: conflict, detail: "The call cannot go from its present status to this one.", pointer: "/status"},
	db.CallsStorageUrlLengthCheck:               {status: invalid, detail: "A reference has at most 2,000 characters."},
	db.OperationCallable:                        {status: conflict, detail: "A subscription is not called through the hub."},
	db.OperationOfferedNow:                      {status: conflict, detail: "No spoke that offers the operation is connected at present."},
	db.OperationScopesCovered:                   {status: http.StatusForbidden, detail: "The key lacks a scope that the operation takes."},
	db.RetentionPoliciesCallDaysCheck:           {status: invalid, detail: "Calls are kept for 1 to 36,500 days, or for ever.", pointer: "/callDays"},
	db.RetentionPoliciesCallPayloadDaysCheck:    {status: invalid, detail: "Payloads are kept for 1 to 36,500 days, or as long as their call.", pointer: "/callPayloadDays"},
	db.RetentionPoliciesCallPayloadLimitCheck:   {status: invalid, detail: "A payload limit is at most 1,048,576 bytes.", pointer: "/callPayloadLimit"},
	db.SensitiveNamesShapeCheck:                 {status: invalid, detail: "A sensitive name has lower-case letters and digits."},

	db.OperationSpecsAnnotationsObjectCheck:   {status: invalid, detail: "Annotations are a JSON object."},
	db.OperationSpecsDescriptionLengthCheck:   {status: invalid, detail: "A description has at most 10,000 characters."},
	db.OperationSpecsErrorSchemaObjectCheck:   {status: invalid, detail: "A schema is a JSON object."},
	db.OperationSpecsInputSchemaObjectCheck:   {status: invalid, detail: "A schema is a JSON object."},
	db.OperationSpecsOutputSchemaObjectCheck:  {status: invalid, detail: "A schema is a JSON object."},
	db.OperationSpecsKindCheck:                {status: invalid, detail: "An operation is a query, a mutation or a subscription."},
	db.OperationSpecsMaxAttemptsCheck:         {status: invalid, detail: "A call is started 1 to 10 times."},
	db.OperationSpecsNamespaceFree:            {status: invalid, detail: "The namespace is the hub's own.", pointer: "/operations"},
	db.OperationSpecsNamespaceShapeCheck:      {status: invalid, detail: "A namespace is one segment: up to 40 letters, digits, _ and -.", pointer: "/operations"},
	db.OperationSpecsNameShapeCheck:           {status: invalid, detail: "A name has letters, digits, _ and - in segments joined by dots, and does not begin with what looks like a spoke's id.", pointer: "/operations"},
	db.OperationSpecsPayloadLimitCheck:        {status: invalid, detail: "A payload limit is at most 1,048,576 bytes."},
	db.OperationSpecsQualifiedNameKey:         {status: conflict, detail: "The spoke offers this operation already."},
	db.OperationSpecsQualifiedNameLengthCheck: {status: invalid, detail: "A qualified name, namespace.{spoke id}.name, has at most 128 characters.", pointer: "/operations"},
	db.OperationSpecsRedactPathsShapeCheck:    {status: invalid, detail: "Redact paths are at most 100 JSON pointers."},
	db.OperationSpecsScopesAllShapeCheck:      {status: invalid, detail: "A scope is noun:read, noun:write or noun:admin, and none of the platform's.", pointer: "/operations"},
	db.OperationSpecsScopesAnyShapeCheck:      {status: invalid, detail: "A scope is noun:read, noun:write or noun:admin, and none of the platform's.", pointer: "/operations"},
	db.OperationSpecsSpokeConnected:           {status: conflict, detail: "A spoke that is disconnected offers nothing."},
	db.OperationSpecsSpokeIDFkey:              {status: invalid, detail: "There is no such spoke."},
	db.OperationSpecsSpokeIDFkeyInUse:         {status: conflict, detail: "The spoke still offers operations."},
	db.OperationSpecsSpokeIDNameKey:           {status: conflict, detail: "The spoke offers this operation already."},
	db.OperationSpecsTitleLengthCheck:         {status: invalid, detail: "A title has at most 200 characters."},
	db.OperationSpecsVersionLengthCheck:       {status: invalid, detail: "A version has 1 to 100 characters."},
	db.OperationSpecsVisibilityCheck:          {status: invalid, detail: "An operation is visible to the organization or to its account."},

	db.ReservedEmailDomainsShapeCheck: {status: invalid, detail: "This is no domain in lower case."},

	db.RetentionPoliciesAuditDaysCheck:   {status: invalid, detail: "Audit entries are kept for 1 to 36,500 days, or for ever.", pointer: "/auditDays"},
	db.RetentionPoliciesSessionDaysCheck: {status: invalid, detail: "Archived sessions are kept for 1 to 36,500 days, or for ever.", pointer: "/sessionDays"},
	db.RetentionPoliciesOrgIDFkey:        {status: invalid, detail: "There is no such organisation."},
	db.RetentionPoliciesOrgIDFkeyInUse:   {status: conflict, detail: "The organisation still has a retention policy."},

	db.RolesBeyondLimits:       {status: http.StatusForbidden, detail: "Roles are all projects'; a key that is limited to projects does not change them."},
	db.RolesFileSetCheck:       {status: invalid, detail: "A role has a set of files exactly when it comes from one.", pointer: "/fileSet"},
	db.RolesFileSetLengthCheck: {status: invalid, detail: "The name of a set of files has 1 to 200 characters.", pointer: "/fileSet"},
	db.RolesNameKey:            {status: conflict, detail: "Another role has this name.", pointer: "/name"},
	db.RolesNameLengthCheck:    {status: invalid, detail: "A role's name has 1 to 200 bytes.", pointer: "/name"},
	db.RolesOrgIDFkey:          {status: invalid, detail: "There is no such organisation."},
	db.RolesOrgIDFkeyInUse:     {status: conflict, detail: "The organisation still has roles."},
	db.RolesOriginCheck:        {status: invalid, detail: "A role comes from api, file or import.", pointer: "/origin"},

	db.SearchEntriesChunkRangeCheck:    {status: invalid, detail: "A text has at most 125 chunks."},
	db.SearchEntriesPartIDChunkKey:     {status: conflict, detail: "This chunk is indexed already."},
	db.SearchEntriesPartIDFkey:         {status: invalid, detail: "There is no such part."},
	db.SearchEntriesPartIDFkeyInUse:    {status: conflict, detail: "The part still can be found."},
	db.SearchEntriesSessionIDFkey:      {status: invalid, detail: "There is no such session."},
	db.SearchEntriesSessionIDFkeyInUse: {status: conflict, detail: "The session still can be found."},
	db.SearchQueryEmpty:                {status: http.StatusBadRequest, detail: "The query has no word to look for.", pointer: "query:q"},

	db.SessionRunStateTransitionsFromStateFkey:      {status: invalid, detail: "There is no such state."},
	db.SessionRunStateTransitionsFromStateFkeyInUse: {status: conflict, detail: "Transitions still refer to the state."},
	db.SessionRunStateTransitionsToStateFkey:        {status: invalid, detail: "There is no such state."},
	db.SessionRunStateTransitionsToStateFkeyInUse:   {status: conflict, detail: "Transitions still refer to the state."},

	db.ToolStateTransitionsFromStateFkey:      {status: invalid, detail: "There is no such state."},
	db.ToolStateTransitionsFromStateFkeyInUse: {status: conflict, detail: "Transitions still refer to the state."},
	db.ToolStateTransitionsToStateFkey:        {status: invalid, detail: "There is no such state."},
	db.ToolStateTransitionsToStateFkeyInUse:   {status: conflict, detail: "Transitions still refer to the state."},

	db.SessionsAccountIDFkey:             {status: invalid, detail: "The account is no member of this organisation.", pointer: "/accountId"},
	db.SessionsAccountIDFkeyInUse:        {status: conflict, detail: "The member still has sessions."},
	db.SessionsForkOfIDFkey:              {status: invalid, detail: "There is no such session to fork.", pointer: "/forkOfId"},
	db.SessionsForkOfIDFkeyInUse:         {status: conflict, detail: "The session still has forks."},
	db.SessionsNotOwnParentCheck:         {status: invalid, detail: "A session cannot be its own parent.", pointer: "/parentId"},
	db.SessionsParentAcyclic:             {status: invalid, detail: "A session cannot be its own ancestor.", pointer: "/parentId"},
	db.SessionsParentIDFkey:              {status: invalid, detail: "There is no such parent session.", pointer: "/parentId"},
	db.SessionsParentIDFkeyInUse:         {status: conflict, detail: "The session still has child sessions."},
	db.SessionsParentSetOnce:             {status: conflict, detail: "A session keeps its parent."},
	db.SessionsProjectIDFkey:             {status: invalid, detail: "There is no such project.", pointer: "/projectId"},
	db.SessionsProjectIDFkeyInUse:        {status: conflict, detail: "The project still has sessions."},
	db.SessionsProjectImmutable:          {status: conflict, detail: "The session is in another project, and stays there."},
	db.SessionsRoleNameFkey:              {status: invalid, detail: "There is no such role.", pointer: "/roleName"},
	db.SessionsRoleNameFkeyInUse:         {status: conflict, detail: "Sessions still have the role."},
	db.SessionsRunStateFkey:              {status: invalid, detail: "There is no such run state.", pointer: "/runState"},
	db.SessionsRunStateFkeyInUse:         {status: conflict, detail: "Sessions still are in this state."},
	db.SessionsRunStateTransition:        {status: conflict, detail: "The session cannot go from its present state to this one.", pointer: "/runState"},
	db.SessionsSlugKey:                   {status: conflict, detail: "Another session has this slug.", pointer: "/slug"},
	db.SessionsSlugShapeCheck:            {status: invalid, detail: slugShape, pointer: "/slug"},
	db.SessionsSourceIDLengthCheck:       {status: invalid, detail: "An id in the source has 1 to 200 bytes."},
	db.SessionsSourceParentIDLengthCheck: {status: invalid, detail: "An id in the source has 1 to 200 bytes."},
	db.SessionsSourceShapeCheck:          {status: invalid, detail: "A source's name has lower-case letters, digits and dashes."},
	db.SessionsSourceSourceIDKey:         {status: conflict, detail: "This session was imported already."},
	db.SessionsSourceWholeCheck:          {status: invalid, detail: "An imported session has a source and an id there."},
	db.SessionsTitleLengthCheck:          {status: invalid, detail: "A title has at most 10,000 characters.", pointer: "/title"},
	db.SessionsVersionFkey:               {status: invalid, detail: "There is no such session version.", pointer: "/version"},
	db.SessionsVersionFkeyInUse:          {status: conflict, detail: "Sessions still have this version."},

	db.MappingsTaskStatusAgrees:          {status: conflict, detail: "A task is in progress exactly while it has an active assignment."},
	db.MappingsEndedHasTimeCheck:         {status: invalid, detail: "A mapping that is over says since when."},
	db.MappingsIdentityImmutable:         {status: conflict, detail: "What a mapping ties together cannot change."},
	db.MappingsKindCheck:                 {status: invalid, detail: "A mapping is an assignment, a delegation or a placement.", pointer: "/kind"},
	db.MappingsLeaseOfAssignmentCheck:    {status: invalid, detail: "An assignment has a lease, and nothing else has."},
	db.MappingsLeaseLengthCheck:          {status: invalid, detail: "A lease lasts 1 to 86,400 seconds.", pointer: "/leaseSeconds"},
	db.MappingsNotOwnParentCheck:         {status: invalid, detail: "A session does not work for itself.", pointer: "/parentSessionId"},
	db.MappingsParentOfDelegationCheck:   {status: invalid, detail: "A delegation has a parent session, and nothing else has.", pointer: "/parentSessionId"},
	db.MappingsPlaceKept:                 {status: conflict, detail: "A placement keeps its spoke and its workspace."},
	db.MappingsPlacementHasPlace:         {status: invalid, detail: "A placement is on a spoke, in a workspace, or both.", pointer: "/spokeId"},
	db.MappingsSpokeDisconnected:         {status: conflict, detail: "The spoke is disconnected: nothing runs there.", pointer: "/spokeId"},
	db.MappingsSpokeIDFkey:               {status: invalid, detail: "There is no such spoke.", pointer: "/spokeId"},
	db.MappingsSpokeIDFkeyInUse:          {status: conflict, detail: "Sessions are still placed on the spoke."},
	db.MappingsSpokeOfPlacementCheck:     {status: invalid, detail: "A placement may be on a spoke, nothing else is.", pointer: "/spokeId"},
	db.MappingsTaskOfAssignmentCheck:     {status: invalid, detail: "An assignment has a task, and nothing else has."},
	db.MappingsWorkspaceIDFkey:           {status: invalid, detail: "There is no such workspace in the project.", pointer: "/workspaceId"},
	db.MappingsWorkspaceIDFkeyInUse:      {status: conflict, detail: "Sessions are still placed in the workspace."},
	db.MappingsWorkspaceOfPlacementCheck: {status: invalid, detail: "A placement may be in a workspace, nothing else is.", pointer: "/workspaceId"},
	db.MappingsParentSessionIDFkey:       {status: invalid, detail: "There is no such session in the project.", pointer: "/parentSessionId"},
	db.MappingsParentSessionIDFkeyInUse:  {status: conflict, detail: "Sessions still work for the session."},
	db.MappingsReasonLengthCheck:         {status: invalid, detail: "A reason has at most 2,000 characters.", pointer: "/reason"},
	db.MappingsSessionActiveKey:          {status: conflict, detail: "The session is mapped already: it works on one task, for one session, and in one place at a time.", pointer: "/sessionId"},
	db.MappingsSessionIDFkey:             {status: invalid, detail: "There is no such session in the project.", pointer: "/sessionId"},
	db.MappingsSessionIDFkeyInUse:        {status: conflict, detail: "The session is still mapped."},
	db.MappingsSessionOver:               {status: conflict, detail: "The session is over: it has ended or was archived.", pointer: "/sessionId"},
	db.MappingsStatusCheck:               {status: invalid, detail: "A mapping is active, completed, failed or aborted.", pointer: "/status"},
	db.MappingsStatusTransition:          {status: conflict, detail: "The mapping is over already."},
	db.MappingsTaskActiveKey:             {status: conflict, detail: "Somebody is at work on the task."},
	db.MappingsTaskIDFkey:                {status: invalid, detail: "There is no such task in the project."},
	db.MappingsTaskIDFkeyInUse:           {status: conflict, detail: "The task is still mapped."},

	db.TaskAlreadyClaimed:                       {status: conflict, detail: "Somebody is at work on the task."},
	db.TaskNotHeld:                              {status: conflict, detail: "The task is not, or no longer, held by this claim.", pointer: "/mappingId"},
	db.TaskNotPending:                           {status: conflict, detail: "Only a pending task that is not archived can be claimed."},
	db.TaskNotReady:                             {status: conflict, detail: "The task waits for others that are not completed."},
	db.TaskStatusStandsAgainst:                  {status: conflict, detail: "The task's status does not permit this."},
	db.TaskDependenciesAcyclic:                  {status: conflict, detail: "The tasks would wait for each other in a circle.", pointer: "/dependsOnTaskId"},
	db.TaskDependenciesDependentTaskIDFkey:      {status: invalid, detail: "There is no such task in the project."},
	db.TaskDependenciesDependentTaskIDFkeyInUse: {status: conflict, detail: "The task still depends on others."},
	db.TaskDependenciesDependsOnTaskIDFkey:      {status: invalid, detail: "There is no such task in the project.", pointer: "/dependsOnTaskId"},
	db.TaskDependenciesDependsOnTaskIDFkeyInUse: {status: conflict, detail: "Other tasks still depend on the task."},
	db.TaskDependenciesEdgeKey:                  {status: conflict, detail: "The task depends on that one already.", pointer: "/dependsOnTaskId"},
	db.TaskDependenciesNotOnItselfCheck:         {status: invalid, detail: "A task does not depend on itself.", pointer: "/dependsOnTaskId"},
	db.TaskNotesAppendOnly:                      {status: conflict, detail: "Notes are only ever added."},
	db.TaskNotesBodyLengthCheck:                 {status: invalid, detail: "A note has 1 to 65,536 bytes.", pointer: "/body"},
	db.TaskNotesTaskIDFkey:                      {status: invalid, detail: "There is no such task in the project."},
	db.TaskNotesTaskIDFkeyInUse:                 {status: conflict, detail: "The task still has notes."},
	db.TaskStatusChangesAppendOnly:              {status: conflict, detail: "A task's history is only ever added to."},
	db.TaskStatusChangesTaskIDFkey:              {status: invalid, detail: "There is no such task in the project."},
	db.TaskStatusChangesTaskIDFkeyInUse:         {status: conflict, detail: "The task still has a history."},

	db.TasksAssigneeLengthCheck:    {status: invalid, detail: "An assignee has 1 to 200 characters.", pointer: "/assignee"},
	db.TasksBaseWholeCheck:         {status: invalid, detail: "A task of a file has its frontmatter and what the last sync left."},
	db.TasksBodyLengthCheck:        {status: invalid, detail: "A task's body has at most 1,048,576 bytes.", pointer: "/body"},
	db.TasksDueLengthCheck:         {status: invalid, detail: "A due date has 1 to 200 characters.", pointer: "/due"},
	db.TasksFinishedHasTimeCheck:   {status: invalid, detail: "A task that is completed or failed says since when, and no other does."},
	db.TasksFrontmatterLengthCheck: {status: invalid, detail: "A frontmatter has at most 65,536 bytes."},
	db.TasksInProgressIsAssigned:   {status: conflict, detail: "A task is in progress exactly while it has an active assignment."},
	db.TasksNameLengthCheck:        {status: invalid, detail: "A task's name has 1 to 1,000 characters.", pointer: "/name"},
	db.TasksNewStatus:              {status: invalid, detail: "A task is in progress once somebody claims it, not from the start.", pointer: "/status"},
	db.TasksPathShapeCheck:         {status: invalid, detail: "A path is relative, its parts joined by slashes, without . and .., at most 1,000 bytes.", pointer: "/path"},
	db.TasksProjectIDFkey:          {status: invalid, detail: "There is no such project.", pointer: "/projectId"},
	db.TasksProjectIDFkeyInUse:     {status: conflict, detail: "The project still has tasks."},
	db.TasksProjectIDIDKey:         {status: conflict, detail: "The project has a task with this id already."},
	db.TasksSlugKey:                {status: conflict, detail: "Another task of the project has this slug.", pointer: "/slug"},
	db.TasksSlugShapeCheck:         {status: invalid, detail: "A task's slug has 1 to 500 bytes, no control characters, and no space at its ends.", pointer: "/slug"},
	db.TasksStatusTransition:       {status: conflict, detail: "The task cannot go from its present status to this one."},
	db.TasksTagsShapeCheck:         {status: invalid, detail: "A task has at most 100 tags, of 10,000 bytes together.", pointer: "/tags"},

	db.WorkspacesBranchShapeCheck:   {status: invalid, detail: "A branch has 1 to 255 bytes, no spaces and no control characters.", pointer: "/branch"},
	db.WorkspacesNameKey:            {status: conflict, detail: "Another workspace of the project has this name.", pointer: "/name"},
	db.WorkspacesNameLengthCheck:    {status: invalid, detail: "A workspace's name has 1 to 200 characters.", pointer: "/name"},
	db.WorkspacesPathShapeCheck:     {status: invalid, detail: "A workspace's path is absolute, or a URL, of at most 4,000 bytes, without control characters.", pointer: "/path"},
	db.WorkspacesProjectIDFkey:      {status: invalid, detail: "There is no such project."},
	db.WorkspacesProjectIDFkeyInUse: {status: conflict, detail: "The project still has workspaces."},
	db.WorkspacesProjectIDIDKey:     {status: conflict, detail: "The project has a workspace with this id already."},

	db.AnomalyTypesBeyondLimits:           {status: http.StatusForbidden, detail: "A key that is limited to projects does not change what all projects share."},
	db.AnomalyTypesBuiltIn:                {status: conflict, detail: "An anomaly type that is built in cannot be deleted."},
	db.AnomalyTypesDescriptionLengthCheck: {status: invalid, detail: "A description has at most 10,000 characters.", pointer: "/description"},
	db.AnomalyTypesNameKey:                {status: conflict, detail: "The organisation has an anomaly type with this name.", pointer: "/name"},
	db.AnomalyTypesNameShapeCheck:         {status: invalid, detail: "An anomaly type's name has capitals and digits in groups joined by underscores, at most 100.", pointer: "/name"},
	db.AnomalyTypesOrgIDFkey:              {status: invalid, detail: "There is no such organisation."},
	db.AnomalyTypesOrgIDFkeyInUse:         {status: conflict, detail: "The organisation still has anomaly types."},
	db.AnomalyTypesSeverityCheck:          {status: invalid, detail: severities, pointer: "/severity"},

	db.DetectionsAcknowledgedByIDFkey:      {status: invalid, detail: "The account is no member of this organisation."},
	db.DetectionsAcknowledgedByIDFkeyInUse: {status: conflict, detail: "The member has acknowledged detections."},
	db.DetectionsAcknowledgedWholeCheck:    {status: invalid, detail: "A detection that is acknowledged says since when, and one that is open is not."},
	db.DetectionsAnomalyTypeFkey:           {status: invalid, detail: "The organisation has no such anomaly type.", pointer: "/anomalyType"},
	db.DetectionsAnomalyTypeFkeyInUse:      {status: conflict, detail: "There are detections of this type."},
	db.DetectionsCountCheck:                {status: invalid, detail: "A detection was seen at least once."},
	db.DetectionsCountRises:                {status: conflict, detail: "How often something was seen only rises."},
	db.DetectionsEvidenceObjectCheck:       {status: invalid, detail: "Evidence is a JSON object.", pointer: "/evidence"},
	db.DetectionsOpenKey:                   {status: conflict, detail: "A detection of this type is open for the session."},
	db.DetectionsOriginCheck:               {status: invalid, detail: "A detection comes from the watcher, or was reported."},
	db.DetectionsReasonLengthCheck:         {status: invalid, detail: "A reason has at most 2,000 characters.", pointer: "/reason"},
	db.DetectionsResolutionCheck:           {status: invalid, detail: "What is resolved is fixed, a false positive, or expired.", pointer: "/resolution"},
	db.DetectionsResolvedByIDFkey:          {status: invalid, detail: "The account is no member of this organisation."},
	db.DetectionsResolvedByIDFkeyInUse:     {status: conflict, detail: "The member has resolved detections."},
	db.DetectionsResolvedFinal:             {status: conflict, detail: "The detection is resolved already."},
	db.DetectionsResolvedWholeCheck:        {status: invalid, detail: "A detection that is resolved says how and since when, and no other does."},
	db.DetectionsSeenInOrderCheck:          {status: invalid, detail: "What is seen last is not seen before it is seen first."},
	db.DetectionsSessionIDFkey:             {status: invalid, detail: "There is no such session.", pointer: "/sessionId"},
	db.DetectionsSessionIDFkeyInUse:        {status: conflict, detail: "The session still has detections."},
	db.DetectionsSeverityCheck:             {status: invalid, detail: severities, pointer: "/severity"},
	db.DetectionsStatusCheck:               {status: invalid, detail: "A detection is open, acknowledged or resolved.", pointer: "/status"},
	db.DetectionsStatusTransition:          {status: conflict, detail: "The detection cannot go from its present status to this one."},

	db.WatchPoliciesBeyondLimits:             {status: http.StatusForbidden, detail: "A key that is limited to projects does not change what all projects share."},
	db.WatchPoliciesErrorCountCheck:          {status: invalid, detail: "Many failed calls are 1 to 1,000.", pointer: "/errorCount"},
	db.WatchPoliciesErrorMinutesCheck:        {status: invalid, detail: "Failed calls are counted over 1 to 1,440 minutes.", pointer: "/errorMinutes"},
	db.WatchPoliciesModelBaselineHoursCheck:  {status: invalid, detail: "Models are judged by 1 to 720 hours.", pointer: "/modelBaselineHours"},
	db.WatchPoliciesModelErrorPercentCheck:   {status: invalid, detail: "Failures rise by 1 to 100 percentage points.", pointer: "/modelErrorPercent"},
	db.WatchPoliciesModelLatencyPercentCheck: {status: invalid, detail: "A slow median is 110 to 10,000 percent of the one before.", pointer: "/modelLatencyPercent"},
	db.WatchPoliciesModelMinutesCheck:        {status: invalid, detail: "Models are judged over 5 to 1,440 minutes.", pointer: "/modelMinutes"},
	db.WatchPoliciesModelTurnsCheck:          {status: invalid, detail: "Models are judged by at least 5 to 1,000 turns.", pointer: "/modelTurns"},
	db.WatchPoliciesOrgIDFkey:                {status: invalid, detail: "There is no such organisation."},
	db.WatchPoliciesOrgIDFkeyInUse:           {status: conflict, detail: "The organisation still has a watch policy."},
	db.WatchPoliciesReportedDaysCheck:        {status: invalid, detail: "Reported detections are kept open for 1 to 36,500 days.", pointer: "/reportedDays"},
	db.WatchPoliciesStallMinutesCheck:        {status: invalid, detail: "A session stalls after 1 to 10,080 minutes.", pointer: "/stallMinutes"},
	db.WatchRoundsOrgIDFkey:                  {status: invalid, detail: "There is no such organisation."},
	db.WatchRoundsOrgIDFkeyInUse:             {status: conflict, detail: "The organisation is still watched."},

	db.SessionsProjectIDIDKey: {status: conflict, detail: "The project has a session with this id already."},
}

const severities = "A severity is low, medium, high or critical."

const slugShape = "A slug has lower-case letters and digits in groups joined by dashes, at most 100 characters."

// ruleFamilies are rules that each table has in the same words: what stands behind the table's name tells the family.
var ruleFamilies = []struct {
	suffix string
	rule   rule
}{
	{"_data_object_check", rule{status: invalid, detail: "data is a JSON object.", pointer: "/data"}},
	{"_metadata_check", rule{status: invalid, detail: "metadata holds one object per subsystem, under a key such as _billing.", pointer: "/metadata"}},
	{"_id_version_check", rule{status: invalid, detail: "An id is a UUID of version 7.", pointer: "/id"}},
	{"_identity_immutable", rule{status: conflict, detail: "What names a resource, and when it was created, cannot change."}},
	{"_pkey", rule{status: conflict, detail: "A resource with this id exists already."}},
	{"_required", rule{status: invalid, detail: "A value is missing."}},
}

func ruleNamed(name string) (rule, bool) {
	if r, ok := rules[name]; ok {
		return r, true
	}
	for _, family := range ruleFamilies {
		if strings.HasSuffix(name, family.suffix) {
			return family.rule, true
		}
	}
	return rule{}, false
}

// writeProblem is the one place where an error becomes an answer. The cause is logged, never sent.
func (s *Server) writeProblem(err error, c echo.Context) {
	if c.Response().Committed { // an export that broke off: the client must not take it for whole
		s.Log.LogAttrs(c.Request().Context(), slog.LevelError, "the answer broke off", slog.String("path", c.Request().URL.Path), slog.Any("cause", logged(err)))
		panic(http.ErrAbortHandler)
	}
	p := asProblem(c.Request(), err)
	requestID := c.Response().Header().Get(echo.HeaderXRequestID)
	var pgErr *pgconn.PgError
	forgotten := p.Code == "not_permitted" && errors.As(err, &pgErr) && pgErr.Routine != "ExecWithCheckOptions" // policies refuse clients; a privilege that is missing is our mistake
	if p.Status >= http.StatusInternalServerError || forgotten {
		s.Log.LogAttrs(c.Request().Context(), slog.LevelError, "request failed", slog.String("requestId", requestID), slog.String("code", p.Code), slog.Any("cause", logged(err)))
	}
	switch p.Status {
	case http.StatusUnauthorized:
		c.Response().Header().Set("WWW-Authenticate", `Bearer realm="hub"`)
		forgetLimits(c.Response().Header())
	case http.StatusServiceUnavailable:
		c.Response().Header().Set("Retry-After", "1")
	}
	c.Response().Header().Del(echo.HeaderContentDisposition) // an export may have come so far
	c.Response().Header().Set(echo.HeaderContentType, "application/problem+json")
	body, err := json.Marshal(api.Problem{
		Type: "urn:hub:problem:" + p.Code, Title: http.StatusText(p.Status), Status: int32(p.Status), Detail: p.Detail,
		Instance: c.Request().URL.Path, Code: p.Code, RequestId: requestID, Errors: p.Errors,
	})
	if err == nil {
		err = c.Blob(p.Status, "application/problem+json", body)
	}
	if err != nil {
		s.Log.LogAttrs(c.Request().Context(), slog.LevelInfo, "the answer could not be written", slog.String("requestId", requestID), slog.Any("cause", err))
	}
}

// logged is what may be logged of an error: PostgreSQL's DETAIL, HINT and WHERE print rows and values, secrets among them.
func logged(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return fmt.Sprintf("%s %s (constraint %q, table %q, column %q)", pgErr.Code, pgErr.Message, pgErr.ConstraintName, pgErr.TableName, pgErr.ColumnName)
	}
	return err.Error()
}

// asProblem tells the client's share of an error.
func asProblem(r *http.Request, err error) *problem {
	var (
		known    *problem
		pgErr    *pgconn.PgError
		syntax   *pgjson.Error
		tooMuch  *http.MaxBytesError
		httpErr  *echo.HTTPError
		netErr   net.Error
		timedOut = errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &tooMuch):
		return tooLarge(tooMuch.Limit)
	case errors.As(err, &syntax):
		return refuse("invalid_json", api.FieldError{Pointer: syntax.Pointer, Message: syntax.Message})
	case errors.As(err, new(*pgconn.ConnectError)) && !timedOut: // before what PostgreSQL said when it refused the connection
		return refuse("database_unavailable")
	case errors.As(err, &pgErr):
		return asRule(r, pgErr, timedOut)
	case errors.Is(err, pgx.ErrNoRows):
		return refuse("route_not_found") // each operation says what it did not find; this one forgot
	case timedOut:
		return refuse("timeout")
	case errors.As(err, &httpErr):
		return asHTTP(httpErr)
	case errors.As(err, &netErr), pgconn.SafeToRetry(err), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF): // the client's own are bodyReader's
		return refuse("database_unavailable")
	default:
		return refuse("internal")
	}
}

// asRule translates what PostgreSQL said. No branch looks at a message's text.
func asRule(r *http.Request, err *pgconn.PgError, timedOut bool) *problem {
	name := err.ConstraintName
	switch err.Code {
	case "23502":
		name = err.TableName + "_" + err.ColumnName + "_required"
	case "23503", "23001":
		// The same SQLSTATE and name, whichever end of the key was violated: what the operation does tells them apart.
		if r.Method == http.MethodDelete && strings.HasSuffix(name, "_fkey") {
			name += "_in_use"
		}
	}
	if _, ok := ruleNamed(name); ok {
		p := refuse(name)
		switch op := operationFrom(r.Context()); name {
		case db.InsufficientScope:
			p.Detail = "The key lacks a scope that the operation needs: " + strings.Join(op.scopes, ", ") + "."
		case db.InsufficientLevel:
			p.Detail = "The operation needs the membership level " + op.level + "."
		}
		return p
	}
	switch {
	case err.Code == "40001" || err.Code == "40P01" || err.Code == "55P03":
		return refuse("try_again")
	case err.Code == "42501":
		return refuse("not_permitted")
	case strings.HasPrefix(err.Code, "22"):
		return refuse("invalid_value")
	case strings.HasPrefix(err.Code, "54"):
		return refuse("value_too_large")
	case timedOut || err.Code == "57014":
		return refuse("timeout")
	case strings.HasPrefix(err.Code, "53") || strings.HasPrefix(err.Code, "57P") || strings.HasPrefix(err.Code, "08"):
		return refuse("database_unavailable")
	default:
		return refuse("internal")
	}
}

func asHTTP(err *echo.HTTPError) *problem {
	switch err.Code {
	case http.StatusNotFound:
		return refuse("route_not_found")
	case http.StatusMethodNotAllowed:
		return refuse("method_not_allowed")
	default:
		p := refuse("invalid_request")
		p.Status = err.Code
		return p
	}
}

// Code is one of the codes that a problem can have, for the reference.
type Code struct {
	Name   string
	Status int
	Detail string
}

// Codes lists all codes by name.
func Codes() []Code {
	all := make([]Code, 0, len(codes)+len(db.Rules))
	for name, r := range codes {
		all = append(all, Code{name, r.status, r.detail})
	}
	for _, name := range db.Rules {
		r, _ := ruleNamed(name)
		all = append(all, Code{name, r.status, r.detail})
	}
	slices.SortFunc(all, func(a, b Code) int { return strings.Compare(a.Name, b.Name) })
	return all
}
