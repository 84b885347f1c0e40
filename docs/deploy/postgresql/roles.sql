-- Two roles for Kasparro: `kasparro` owns the tables, migrates and loads; `kasparro_read` can only read.
--
-- Run it as a superuser of PostgreSQL 15 or newer, or as the administrator of a managed one:
--
--     psql -v ON_ERROR_STOP=1 -f roles.sql postgres
--
-- Then set the passwords, which psql sends encrypted: \password kasparro and \password kasparro_read. The script
-- may run again at any time, also on a database that has tables.

SELECT 'CREATE ROLE kasparro LOGIN' WHERE to_regrole('kasparro') IS NULL \gexec
SELECT 'CREATE ROLE kasparro_read LOGIN' WHERE to_regrole('kasparro_read') IS NULL \gexec
-- PostgreSQL 16 and newer let the administrator of a managed server create a database only for a role that it
-- is a member of.
SELECT 'GRANT kasparro TO CURRENT_USER'
WHERE current_user <> 'kasparro' AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) \gexec
SELECT 'CREATE DATABASE kasparro OWNER kasparro'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'kasparro') \gexec

\connect kasparro

-- By default, every role may connect to a database, create temporary tables in it, and create large objects.
-- Only a superuser can revoke the last one; others get a warning here.
REVOKE ALL ON DATABASE kasparro FROM public;
GRANT CONNECT ON DATABASE kasparro TO kasparro_read;
REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) FROM public;

REVOKE ALL ON SCHEMA public FROM public;
GRANT ALL ON SCHEMA public TO kasparro;
GRANT USAGE ON SCHEMA public TO kasparro_read;

-- The tables of today, and those that Kasparro will create, such as a month of the history.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO kasparro_read;
ALTER DEFAULT PRIVILEGES FOR ROLE kasparro IN SCHEMA public GRANT SELECT ON TABLES TO kasparro_read;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM public;
ALTER DEFAULT PRIVILEGES FOR ROLE kasparro REVOKE EXECUTE ON FUNCTIONS FROM public;

-- Not for safety, because a session may change it: programs learn that they need not try.
ALTER ROLE kasparro_read IN DATABASE kasparro SET default_transaction_read_only = on;
