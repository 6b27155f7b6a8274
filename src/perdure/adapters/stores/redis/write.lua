-- What changes sessions. The answer is {answers, loads, incarnation, behind}: what operations have to
-- say, and the sessions that were claimed.
local VOIDED_MAX = 1000
local PUSHED_MAX = 1000
local LEASES_KEPT_MS = 7 * 86400 * 1000
local NO_WAKE = '+inf'

-- The facts may be older than what was acknowledged: after a failover, or when a server that does
-- not sync was started again. A server that syncs and was never followed may well start again.
-- What a writer misses was lost; but only once, if the store was distrusted since it was told. A
-- store in an earlier incarnation than the writer was told was set back to before a distrust.
local history = match(replication, 'master_replid:(%x+)')
local lost = behind == 1 and last < number and tonumber(ARGV[9]) >= tonumber(incarnation)
local function distrust()
  incarnation = format('%.0f', math.max(now, incarnation + 1, (tonumber(ARGV[9]) or 0) + 1))
  call('HSET', realm, 'incarnation', incarnation)
end
if history ~= described[2] or lost then
  local promoted = not match(replication, 'master_replid2:0+\r')
  if lost or promoted or described[4] or ARGV[8] ~= '1' then
    distrust()
  end
  call('HSET', realm, 'history', history)
end
if not described[4] and not match(replication, 'connected_slaves:0\r') then
  call('HSET', realm, 'followed', 1)
end

local function park(sid, wake, generation)
  if wake then
    local queue = agent_of(sid) .. '/' .. generation
    call('ZADD', base .. 'due:' .. queue, wake, sid)
    call('SADD', base .. 'agents', queue)
  end
end

local function unpark(sid, generation)
  call('ZREM', base .. 'due:' .. agent_of(sid) .. '/' .. generation, sid)
end

local function disown(owner, sid)
  call('ZREM', base .. 'own:' .. owner, sid)
  call('SREM', base .. 'unread:' .. owner, sid)
  if call('EXISTS', base .. 'own:' .. owner) == 0 then
    call('SREM', base .. 'holders', owner)
  end
end

-- Return the indexes that have the runs of a session.
local function indexes_of(sid)
  local tenant, agent, key = match(sid, '^([^/]*)/([^/]*)/([^/]*)$')
  return {
    base .. 'runs:' .. tenant .. '/' .. agent, base .. 'runs:' .. sid,
    base .. 'keys:' .. tenant .. '/' .. key,
  }
end

local function keep_row(row, body)
  local tenant, id, status, sid, created = unpack(row)
  local rows, all = base .. 'rows:' .. tenant, base .. 'runs:' .. tenant
  local old, was_status, was_sid = call('HGET', rows, id), nil, nil
  if old then
    was_status, was_sid = match(old, '^([^\n]*)\n([^\n]*)\n')
    created = call('ZSCORE', all, id)
  else
    call('ZADD', all, created, id)
  end
  if was_sid ~= sid then
    for _, index in ipairs(was_sid and indexes_of(was_sid) or {}) do
      call('ZREM', index, id)
    end
    for _, index in ipairs(indexes_of(sid)) do
      call('ZADD', index, created, id)
    end
  end
  if was_status and was_status ~= status then
    call('ZREM', base .. 'status:' .. was_status .. ':' .. tenant, id)
  end
  if was_status ~= status then
    call('ZADD', base .. 'status:' .. status .. ':' .. tenant, created, id)
  end
  call('HSET', rows, id, status .. '\n' .. sid .. '\n' .. body)
end

-- {'accept', n, sid, id, generation, rows, how many may wait or -1}; digest, entry, row
local function accept(op)
  local sid, id, generation, rows, most = op[3], op[4], op[5], op[6], op[7]
  local key, inbox, ids = base .. 's:' .. sid, base .. 'in:' .. sid, base .. 'ids:' .. sid
  local digest, entry = payload(), payload()
  local known = call('HGET', ids, id)
  if known then
    return {string.sub(known, 1, 16) == digest and 'duplicate' or 'reused'}
  end
  local epoch, owner, wake, waiting, knows, quarantine, was = unpack(call('HMGET', key,
    'epoch', 'owner', 'wake', 'waiting', 'known', 'quarantine', 'generation'))
  waiting = tonumber(waiting or 0)
  if rows[1] and most >= 0 and waiting >= most then
    return {'full'}
  end
  if not epoch then
    was = 0
    call('HSET', key, 'epoch', 0, 'known', 0, 'strikes', 0, 'claimed', 0, 'generation', 0,
      'trusted', incarnation, 'trusts', incarnation, 'snapshot', 0)
  end
  generation = math.max(tonumber(was), generation)
  local at = wake and math.min(tonumber(wake), now) or now
  call('HSET', ids, id, digest)
  call('HSET', inbox, id, struct.pack('>I4', call('HINCRBY', key, 'accepted', 1)) .. entry)
  call('HSET', key, 'wake', at, 'waiting', waiting + 1, 'generation', generation)
  if owner then
    call('ZADD', base .. 'own:' .. owner, at, sid)
    if waiting + 1 > tonumber(knows) then
      call('SADD', base .. 'unread:' .. owner, sid)
    end
  elseif not quarantine then
    if wake and generation ~= tonumber(was) then
      unpark(sid, was)
    end
    park(sid, at, generation)
  end
  for _, row in ipairs(rows) do
    keep_row(row, payload())
  end
end

-- {'claim', 0, sid, owner, nonce, strikes_max or -1, reads or -1}
local function claim(op)
  local sid, owner, nonce, strikes_max, reads = op[3], op[4], op[5], op[6], op[7]
  local key = base .. 's:' .. sid
  local epoch, was, wake, waiting, strikes, claimed, quarantine, generation = unpack(
    call('HMGET', key, 'epoch', 'owner', 'wake', 'waiting', 'strikes', 'claimed', 'quarantine',
      'generation'))
  if not epoch then
    return {'absent'}
  elseif quarantine then
    return {'quarantined'}
  elseif was and was ~= owner and is_alive(was) then
    return {'held', was}
  elseif reads >= 0 and tonumber(generation) > reads then
    return {'newer'}
  end
  local struck = strikes + (was == owner and 0 or claimed)
  if strikes_max >= 0 and struck > strikes_max then
    return {'struck'}
  end
  epoch = epoch + 1
  call('HSET', key, 'epoch', epoch, 'nonce', nonce, 'owner', owner, 'claimed', 1,
    'strikes', struck, 'known', waiting,
    'trusts', incarnation)
  if was and was ~= owner then
    disown(was, sid)
  elseif was then
    call('SREM', base .. 'unread:' .. owner, sid)
  elseif wake then
    unpark(sid, generation)
  end
  call('ZADD', base .. 'own:' .. owner, wake or NO_WAKE, sid)
  call('SADD', base .. 'holders', owner)
  return {'claimed', epoch}
end

-- {'commit', n, sid, epoch, nonce, expected, how many records, what is wrong with the step,
--  consumed, postponed, wake or '', generation, rows, addresses, refused, how many snapshots};
-- records, rows, blobs, refusals, snapshot
local refused = {}
local function commit(op)
  local sid, epoch, nonce, records = op[3], op[4], op[5], op[7]
  local claimed = epoch .. ' ' .. nonce .. ' ' .. sid
  if refused[claimed] then
    return refused[claimed]
  end
  local key, log = base .. 's:' .. sid, base .. 'log:' .. sid
  local is_epoch, is_nonce, was, waiting, known, strikes, read, trusted, trusts = unpack(
    call('HMGET', key, 'epoch', 'nonce', 'wake', 'waiting', 'known', 'strikes', 'generation',
      'trusted', 'trusts'))
  local version, consumed = call('LLEN', log), op[9]
  local refusal = nil
  if is_epoch ~= epoch or is_nonce ~= nonce then
    refusal = {'fenced'}
  elseif version ~= op[6] then
    refusal = {'version', version}
  elseif op[8] ~= '' then
    refusal = {op[8]}
  end
  for _, id in ipairs(consumed) do
    if not refusal and call('HEXISTS', base .. 'in:' .. sid, id) == 0 then
      refusal = {'inbox'}
    end
  end
  if refusal then
    refused[claimed] = refusal
    return refusal
  end

  for first = cursor + 1, cursor + records, PUSHED_MAX do
    call('RPUSH', log, unpack(ARGV, first, math.min(first + PUSHED_MAX - 1, cursor + records)))
  end
  cursor = cursor + records
  for _, row in ipairs(op[13]) do
    keep_row(row, payload())
  end
  for _, address in ipairs(op[14]) do
    call('SET', base .. 'blob:' .. address, payload(), 'NX')
  end
  for _, id in ipairs(op[15]) do
    local ids, words = base .. 'ids:' .. sid, payload()
    local digest = call('HGET', ids, id)
    if digest then
      call('HSET', ids, id, string.sub(digest, 1, 16) .. words)
    end
  end
  if op[16] == 1 then
    call('SET', base .. 'snap:' .. sid, payload())
    call('HSET', key, 'snapshot', version + records)
  end
  for _, id in ipairs(consumed) do
    call('HDEL', base .. 'in:' .. sid, id)
  end
  if consumed[1] then
    call('HSET', key, 'waiting', waiting - #consumed)
  end

  local postponed, wake = op[10], op[11]
  local was_unread = tonumber(waiting) > tonumber(known)
  local is_unread = waiting - #consumed > postponed
  if is_unread then
    wake = '0'
  end
  if wake ~= (was or '') then
    local owner = call('HGET', key, 'owner')
    call('ZADD', base .. 'own:' .. owner, wake == '' and NO_WAKE or wake, sid)
    if wake == '' then
      call('HDEL', key, 'wake')
    else
      call('HSET', key, 'wake', wake)
    end
  end
  if is_unread ~= was_unread then
    local unread = base .. 'unread:' .. call('HGET', key, 'owner')
    call(is_unread and 'SADD' or 'SREM', unread, sid)
  end
  if tonumber(known) ~= postponed then
    call('HSET', key, 'known', postponed)
  end
  if op[12] > tonumber(read) then
    call('HSET', key, 'generation', op[12])
  end
  if records > 0 and (strikes ~= '0' or trusted ~= trusts) then
    call('HSET', key, 'strikes', 0, 'trusted', trusts)
  end
end

-- {'renew', 0, owner, lease_ms, whether its claims are void in any case}
local function renew(op)
  local owner, leases = op[3], base .. 'leases'
  local ends = call('ZSCORE', leases, owner)
  local late = op[5] == 1 or ends and tonumber(ends) <= now
  if late then
    for _, sid in ipairs(call('ZRANGE', base .. 'own:' .. owner, 0, VOIDED_MAX - 1)) do
      local key = base .. 's:' .. sid
      local strikes, wake, generation = unpack(
        call('HMGET', key, 'strikes', 'wake', 'generation'))
      strikes = tonumber(strikes)
      call('HSET', key, 'claimed', strikes > 0 and 1 or 0, 'strikes', math.max(0, strikes - 1))
      call('HDEL', key, 'owner', 'nonce')
      disown(owner, sid)
      park(sid, wake, generation)
    end
    if call('EXISTS', base .. 'own:' .. owner) == 1 then
      return {'more'}
    end
  end
  call('ZADD', leases, now + op[4], owner)
  for _, old in ipairs(
    call('ZRANGEBYSCORE', leases, '-inf', now - LEASES_KEPT_MS, 'LIMIT', 0, 10)) do
    if call('SISMEMBER', base .. 'holders', old) == 0 then
      call('ZREM', leases, old)
    end
  end
  return late and {'late'} or nil
end

-- {'release', n, sid, epoch or '', nonce, version of the snapshot or 0, {quarantine} or {}};
-- snapshot
local function release(op)
  local sid, epoch, nonce, snapshot, quarantine = op[3], op[4], op[5], op[6], op[7]
  local key = base .. 's:' .. sid
  local is_epoch, is_nonce, owner, wake, was, generation, kept_version = unpack(call('HMGET', key,
    'epoch', 'nonce', 'owner', 'wake', 'quarantine', 'generation', 'snapshot'))
  if epoch ~= '' and (is_epoch ~= epoch or is_nonce ~= nonce) then
    return {'fenced'}
  elseif not is_epoch then
    return {'absent'}
  end
  if snapshot > tonumber(kept_version) and snapshot <= call('LLEN', base .. 'log:' .. sid) then
    call('SET', base .. 'snap:' .. sid, payload())
    call('HSET', key, 'snapshot', snapshot)
  end
  call('HDEL', key, 'owner', 'nonce', 'quarantine')
  if owner then
    disown(owner, sid)
  elseif wake and not was then
    unpark(sid, generation)
  end
  if quarantine[1] then
    call('HSET', key, 'quarantine', quarantine[1])
  else
    call('HSET', key, 'claimed', 0, 'strikes', 0)
    park(sid, wake, generation)
  end
end

local answers, loads = execute({
  accept = accept, claim = claim, commit = commit, renew = renew, release = release,
  distrust = distrust, touch = function() end,
}), {}
for _, answer in ipairs(answers) do
  if answer[2] == 'claimed' then
    loads[#loads + 1] = load(operations[answer[1] + 1][3])
  end
end
return {answers, loads, incarnation, behind}
