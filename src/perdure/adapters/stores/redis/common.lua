-- What both scripts begin with. KEYS[1] is the hash that describes the store; ARGV is
--   1 what every name begins with, up to and with the hash tag's colon
--   2 the store's identity
--   3 the time in milliseconds since 1970, or nothing for the server's own
--   4 the operations, as msgpack of lists of text and integers
-- and after what a script takes besides come the payloads, in the order of the operations.
--
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
--   runs:TENANT, runs:TENANT/AGENT, runs:SID, status:STATUS:TENANT   runs by when they were created
--   blob:ADDRESS   contents
--   writer:ID      what the last batch of a writer came to
local call, match, format = redis.call, string.match, string.format
local store, base, identity, now = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
if not now then
  local time = call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local described = call('HMGET', store, 'identity', 'history', 'incarnation', 'followed')
if described[1] ~= identity then
  return redis.error_reply('PERDUREOTHER ' .. (described[1] or 'nothing'))
end
local replication = call('INFO', 'replication')
if not match(replication, 'role:master') then
  return redis.error_reply('READONLY this is a replica')
end
local incarnation = described[3]

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
