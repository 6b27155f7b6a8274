-- A catalog's keys, after `c:`; TENANT, NAME and HANDLE are escaped.
--   entry:KIND/ID     a hash: tenant, revision, inserted, updated, name, handle, of, archived, body
--   ids               kind -> the last id that was given; "run", "session": the last number
--   names:TENANT/KIND     name -> id
--   handles:KIND          handle -> id
--   all:TENANT/KIND, all:TENANT/KIND/OF     ids in order; the same under `live:` unless archived
--   tenants               ids of those that are live
--   numbers:TENANT/OF, named:TENANT/OF      id -> number, number -> id
local function at(name)
  return base .. 'c:' .. name
end

local function entry_key(kind, id)
  return at('entry:' .. kind .. '/' .. id)
end

-- Return {id, tenant, revision, inserted, updated, body}, or false.
local function entry_of(kind, id)
  local found = call('HMGET', entry_key(kind, id),
    'tenant', 'revision', 'inserted', 'updated', 'body')
  return found[1] and {id, unpack(found)}
end
