-- The lanes whose first message is due, of each priority those that have been for longest. ARGV: now, most lanes of a
-- priority. Answers lane, due, lane, due...
local found = {}
for _, lanes in ipairs(LANES) do
    local due = call('ZRANGEBYSCORE', lanes, '-inf', ARGV[1], 'WITHSCORES', 'LIMIT', 0, ARGV[2])
    for _, part in ipairs(due) do
        found[#found + 1] = part
    end
end
return found
