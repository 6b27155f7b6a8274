-- {'get', tenant, kind, id}
local function get(op)
  local found = entry_of(op[3], op[4])
  return found and found[2] == op[2] and found
end

-- {'find', tenant, kind, name}
local function find(op)
  local id = call('HGET', at('names:' .. op[2] .. '/' .. op[3]), op[4])
  return id and entry_of(op[3], id)
end

-- {'locate', kind, handle}
local function locate(op)
  local id = call('HGET', at('handles:' .. op[2]), op[3])
  return id and entry_of(op[2], id)
end

-- {'list', kind, list, after or '', newest first, limit}
local function list(op)
  local kind, name, after, newest_first, limit = op[2], at(op[3]), op[4], op[5], op[6]
  local ids
  if newest_first == 1 then
    ids = call('ZREVRANGEBYSCORE', name, after == '' and '+inf' or '(' .. after, '-inf',
      'LIMIT', 0, limit)
  else
    ids = call('ZRANGEBYSCORE', name, after == '' and '-inf' or '(' .. after, '+inf',
      'LIMIT', 0, limit)
  end
  local entries = {}
  for place, id in ipairs(ids) do
    entries[place] = entry_of(kind, id)
  end
  return entries
end

-- {'named', tenant, of, number}
local function named(op)
  return call('HGET', at('named:' .. op[2] .. '/' .. op[3]), op[4])
end

local KINDS = {get = get, find = find, locate = locate, list = list, named = named}
local answers = {}
for place, operation in ipairs(cmsgpack.unpack(ARGV[4])) do
  answers[place] = KINDS[operation[1]](operation)
end
return answers
