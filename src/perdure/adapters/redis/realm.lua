-- What every script of a realm begins with. KEYS[1] is the hash that describes the realm; ARGV is
--   1 what every name begins with, up to and with the hash tag's colon
--   2 the realm's identity
--   3 the time in milliseconds since 1970, or nothing for the server's own
--   4 the operations, as msgpack of lists of text and integers
-- and after what a script takes besides come the payloads, in the order of the operations.
local call, match, format = redis.call, string.match, string.format
local realm, base, identity, now = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
if not now then
  local time = call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local described = call('HMGET', realm, 'identity', 'history', 'incarnation', 'followed')
if described[1] ~= identity then
  return redis.error_reply('PERDUREOTHER ' .. (described[1] or 'nothing'))
end
local replication = call('INFO', 'replication')
if not match(replication, 'role:master') then
  return redis.error_reply('READONLY this is a replica')
end
local incarnation = described[3]
