-- Questions, each {kind, ...}; one answer for each, in order.
local PAGE = 200
local READ_MAX = 100
local READ_BYTES_MAX = 4 * 1024 * 1024

-- {'load', sid}
local function load_one(op)
  return load(op[2])
end

-- {'read', sid, after, limit} -> {version, record...}: not all at once if they are many or large
local function read(op)
  local log, after, limit = base .. 'log:' .. op[2], op[3], math.min(op[4], READ_MAX)
  local answer, size, records = {call('LLEN', log)}, 0, nil
  repeat
    records = call('LRANGE', log, after, math.min(after + 9, op[3] + limit - 1))
    for _, record in ipairs(records) do
      answer[#answer + 1] = record
      size = size + #record
    end
    after = after + #records
  until not records[1] or after >= op[3] + limit or size >= READ_BYTES_MAX
  return answer
end

-- {'blob', address}
local function blob(op)
  return call('GET', base .. 'blob:' .. op[2])
end

-- {'settled', sid, id}: what the id's digest is followed by
local function settled(op)
  if call('HEXISTS', base .. 'in:' .. op[2], op[3]) == 1 then
    return false
  end
  local known = call('HGET', base .. 'ids:' .. op[2], op[3])
  return known and string.sub(known, 17)
end

local function rows_of(tenant, found)
  if not found[1] then
    return {}
  end
  local ids = {}
  for place = 1, #found, 2 do
    ids[#ids + 1] = found[place]
  end
  local bodies, rows = call('HMGET', base .. 'rows:' .. tenant, unpack(ids)), {}
  for place, id in ipairs(ids) do
    rows[place] = {id, found[2 * place], bodies[place]}
  end
  return rows
end

-- {'run', tenant, id}
local function run(op)
  local created = call('ZSCORE', base .. 'runs:' .. op[2], op[3])
  return rows_of(op[2], created and {op[3], created} or {})
end

-- {'list', tenant, index, created_at or '+inf', offset, limit}: newest first, from that time on
local function list(op)
  return rows_of(op[2], call('ZREVRANGEBYSCORE', base .. op[3], op[4], '-inf', 'WITHSCORES',
    'LIMIT', op[5], op[6]))
end

-- Add to `ready` and `later` what a queue has; `wanted` says of a session whether it counts.
local function look(queue, at, limit, ready, later, wanted)
  local found, offset = 0, 0
  while found < limit do
    local page = call('ZRANGEBYSCORE', queue, '-inf', at, 'WITHSCORES', 'LIMIT', offset, PAGE)
    for place = 1, #page, 2 do
      if found < limit and wanted(page[place]) then
        found = found + 1
        ready[#ready + 1] = {tonumber(page[place + 1]), page[place]}
      end
    end
    if #page < 2 * PAGE then
      break
    end
    offset = offset + PAGE
  end
  offset = 0
  while true do
    local page = call('ZRANGEBYSCORE', queue, '(' .. format('%.0f', at), '(inf', 'WITHSCORES',
      'LIMIT', offset, PAGE)
    for place = 1, #page, 2 do
      if wanted(page[place]) then
        later[1] = math.min(later[1] or math.huge, tonumber(page[place + 1]))
        return
      end
    end
    if #page < 2 * PAGE then
      return
    end
    offset = offset + PAGE
  end
end

-- {'due', at, limit, agents or {}, whether all agents, reads or -1} -> {next or false, sid...}
local function due(op)
  local at, limit, names, all, reads = op[2], op[3], op[4], op[5] == 1, op[6]
  local asked, ready, later = {}, {}, {}
  for _, agent in ipairs(names) do
    asked[agent] = true
  end
  local function any()
    return true
  end
  for _, queue in ipairs(call('SMEMBERS', base .. 'agents')) do
    local agent, generation = match(queue, '^(.*)/(%d+)$')
    if (all or asked[agent]) and (reads < 0 or tonumber(generation) <= reads) then
      look(base .. 'due:' .. queue, at, limit, ready, later, any)
    end
  end
  local function wanted(sid)
    if not (all or asked[agent_of(sid)]) then
      return false
    end
    return reads < 0 or tonumber(call('HGET', base .. 's:' .. sid, 'generation')) <= reads
  end
  for _, owner in ipairs(call('SMEMBERS', base .. 'holders')) do
    if not is_alive(owner) then
      look(base .. 'own:' .. owner, at, limit, ready, later, wanted)
    end
  end
  table.sort(ready, function(one, other)
    if one[1] ~= other[1] then
      return one[1] < other[1]
    end
    return one[2] < other[2]
  end)
  local answer = {later[1] and format('%.0f', later[1]) or false}
  for place = 1, math.min(limit, #ready) do
    answer[#answer + 1] = ready[place][2]
  end
  return answer
end

-- {'unread', owner, limit}
local function unread(op)
  return call('SRANDMEMBER', base .. 'unread:' .. op[2], op[3])
end

local KINDS = {
  load = load_one, read = read, blob = blob, settled = settled, run = run, list = list, due = due,
  unread = unread,
}
local answers = {}
for place, operation in ipairs(cmsgpack.unpack(ARGV[4])) do
  answers[place] = KINDS[operation[1]](operation)
end
return answers
