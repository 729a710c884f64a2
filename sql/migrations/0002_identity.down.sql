DROP FUNCTION bootstrap_hub(text, text, text, bytea);
DROP FUNCTION authenticate(bytea, text[]);
DROP TABLE api_keys;
ALTER TABLE organizations DROP CONSTRAINT organizations_owner_is_member_fkey;
DROP POLICY accounts_visible ON accounts;
DROP TABLE organization_members;
DROP TABLE organizations;
DROP TABLE accounts;
DROP FUNCTION refuse_system_account_change();
