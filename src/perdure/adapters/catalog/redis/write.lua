local function lists_of(tenant, kind, of)
  local lists = {tenant .. '/' .. kind}
  if of and of ~= '' then
    lists[2] = lists[1] .. '/' .. of
  end
  return lists
end

local function enlist(kind, id, entry)
  for _, list in ipairs(lists_of(entry.tenant, kind, entry.of)) do
    call('ZADD', at('all:' .. list), id, id)
    if entry.archived == '0' then
      call('ZADD', at('live:' .. list), id, id)
    end
  end
  if kind == 'tenant' and entry.archived == '0' then
    call('ZADD', at('tenants'), id, id)
  end
  if entry.has_name == 1 then
    call('HSET', at('names:' .. entry.tenant .. '/' .. kind), entry.name, id)
  end
  if entry.has_handle == 1 then
    call('HSET', at('handles:' .. kind), entry.handle, id)
  end
  call('HSET', entry_key(kind, id), 'tenant', entry.tenant, 'of', entry.of, 'name', entry.name,
    'named', entry.has_name, 'handle', entry.handle, 'handled', entry.has_handle,
    'archived', entry.archived, 'revision', entry.revision, 'inserted', entry.inserted,
    'updated', now, 'body', entry.body)
end

local function unlist(kind, id)
  local tenant, of, name, named, handle, handled = unpack(call('HMGET', entry_key(kind, id),
    'tenant', 'of', 'name', 'named', 'handle', 'handled'))
  for _, list in ipairs(lists_of(tenant, kind, of)) do
    call('ZREM', at('all:' .. list), id)
    call('ZREM', at('live:' .. list), id)
  end
  if kind == 'tenant' then
    call('ZREM', at('tenants'), id)
  end
  if named == '1' then
    call('HDEL', at('names:' .. tenant .. '/' .. kind), name)
  end
  if handled == '1' then
    call('HDEL', at('handles:' .. kind), handle)
  end
end

-- Return the word of what is taken already by another one than `id`.
local function taken(kind, id, entry)
  local by_name = entry.has_name == 1
    and call('HGET', at('names:' .. entry.tenant .. '/' .. kind), entry.name)
  if by_name and by_name ~= id then
    return 'name'
  end
  local by_handle = entry.has_handle == 1 and call('HGET', at('handles:' .. kind), entry.handle)
  return by_handle and by_handle ~= id and 'handle'
end

-- What both of the next two are given after their own: has_name, name, has_handle, handle, of,
-- archived; the body is the payload.
local function entry_in(op, first, tenant)
  return {
    tenant = tenant, has_name = op[first], name = op[first + 1], has_handle = op[first + 2],
    handle = op[first + 3], of = op[first + 4], archived = op[first + 5], body = payload(),
  }
end

-- {'create', 1, tenant, kind, ...}
local function create(op)
  local tenant, kind = op[3], op[4]
  local entry = entry_in(op, 5, tenant)
  local what = taken(kind, '', entry)
  if what then
    return {'taken', what}
  end
  local id = format('%.0f', call('HINCRBY', at('ids'), kind, 1))
  entry.revision, entry.inserted = 1, now
  enlist(kind, id, entry)
  return {'kept', id, '1', format('%.0f', now), format('%.0f', now)}
end

-- {'update', 1, tenant, kind, id, revision, ...}
local function update(op)
  local tenant, kind, id = op[3], op[4], op[5]
  local is_tenant, revision, inserted = unpack(
    call('HMGET', entry_key(kind, id), 'tenant', 'revision', 'inserted'))
  if is_tenant ~= tenant or revision ~= op[6] then
    return {'stale'}
  end
  local entry = entry_in(op, 7, tenant)
  local what = taken(kind, id, entry)
  if what then
    return {'taken', what}
  end
  entry.revision, entry.inserted = revision + 1, inserted
  unlist(kind, id)
  enlist(kind, id, entry)
  return {'kept', id, format('%.0f', entry.revision), inserted, format('%.0f', now)}
end

-- {'delete', 0, tenant, kind, id}
local function delete(op)
  local tenant, kind, id = op[3], op[4], op[5]
  if call('HGET', entry_key(kind, id), 'tenant') ~= tenant then
    return {'absent'}
  end
  unlist(kind, id)
  call('DEL', entry_key(kind, id))
end

-- {'numbers', 0, tenant, of, ids}
local function numbers(op)
  local place, answer = op[3] .. '/' .. op[4], {'numbers'}
  for _, id in ipairs(op[5]) do
    local number = call('HGET', at('numbers:' .. place), id)
    if not number then
      number = format('%.0f', call('HINCRBY', at('ids'), op[4], 1))
      call('HSET', at('numbers:' .. place), id, number)
      call('HSET', at('named:' .. place), number, id)
    end
    answer[#answer + 1] = number
  end
  return answer
end

return {execute({create = create, update = update, delete = delete, numbers = numbers}), {}, incarnation, behind}
