-- Of each session SID (tenant/agent/key, escaped) there is
--   s:SID     a hash: epoch, nonce, owner, wake, waiting, known, accepted, strikes, claimed, quarantine,
--             generation, trusted, trusts, snapshot (the version it is of). It never expires.
--   log:SID   a list: the record of position n is element n - 1, so that its length is the version
--   in:SID    a hash: id -> its place in the order (4 bytes), and the entry; what waits
--   ids:SID   a hash: id -> digest (16 bytes) and the refusal; every id that was ever accepted
--   snap:SID  the snapshot
-- and besides
--   due:AGENT/GENERATION  sessions that nobody owns, by when they are due; `agents` names them all
--   own:OWNER      sessions that a node owns, by when they are due (inf: never); `holders` names
--                  the nodes that own any
--   unread:OWNER   those of them with entries that it does not know of
--   leases         nodes by when their lease ends
--   rows:TENANT    run -> status, SID and the row, a line each
--   runs:TENANT, runs:TENANT/AGENT, runs:SID, keys:TENANT/KEY, status:STATUS:TENANT
--                  runs by when they were created
--   blob:ADDRESS   contents
--   writer:ID      what the last batch of a writer came to
local function agent_of(sid)
  return match(sid, '/([^/]*)/')
end

local function is_alive(owner)
  local ends = call('ZSCORE', base .. 'leases', owner)
  return ends and tonumber(ends) > now
end

local function load(sid)
  local found = call('HMGET', base .. 's:' .. sid,
    'epoch', 'strikes', 'quarantine', 'trusted', 'snapshot')
  if not found[1] then
    return false
  end
  local log = base .. 'log:' .. sid
  local suspect = tonumber(found[4]) < tonumber(incarnation) and incarnation
  return {
    call('LLEN', log), found[2], found[3], suspect, found[5],
    call('GET', base .. 'snap:' .. sid),
    call('LINDEX', log, -1),
    call('LRANGE', log, tonumber(found[5]), -1),
    call('HGETALL', base .. 'in:' .. sid),
  }
end
