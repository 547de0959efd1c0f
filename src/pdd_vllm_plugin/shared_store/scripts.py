"""What the store does in one step, in Lua: so that replicas can write at the same time and the bounds hold.

Each key has a time to live. The index and the sizes live as long as the state that expires last.
"""

from __future__ import annotations

WRITE = """
-- KEYS: state, tombstone, index, sizes, completion ("" for none)
-- ARGV: digest, value, ttl in ms, bytes that all may take, prefix of states, the completion's member
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])  -- first: after any other write, maxmemory is not looked at
local clock = redis.call('TIME')
local now, ttl = clock[1] * 1000 + math.floor(clock[2] / 1000), tonumber(ARGV[3])
local function forget(digest)
    local size = redis.call('HGET', KEYS[4], digest)
    if size then redis.call('HINCRBY', KEYS[4], 'total', -size) end
    redis.call('HDEL', KEYS[4], digest)
    redis.call('ZREM', KEYS[3], digest)
end
local function live(key)
    if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, ttl) end
end
for _, digest in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now)) do forget(digest) end
forget(ARGV[1])
local size = #ARGV[2] + 512  -- keys and bookkeeping take about as much
local total = redis.call('HINCRBY', KEYS[4], 'total', size)
redis.call('HSET', KEYS[4], ARGV[1], size)
while total > tonumber(ARGV[4]) do
    local oldest = redis.call('ZRANGE', KEYS[3], 0, 0)[1]
    if not oldest then break end
    forget(oldest)
    redis.call('DEL', ARGV[5] .. oldest)
    total = tonumber(redis.call('HGET', KEYS[4], 'total'))
end
redis.call('ZADD', KEYS[3], now + ttl, ARGV[1])
live(KEYS[3])
live(KEYS[4])
if KEYS[5] ~= '' then
    redis.call('SADD', KEYS[5], ARGV[6])
    live(KEYS[5])
end
return 1
"""

REMOVE = """
-- KEYS: state, index, sizes, completion, tombstone of the handoff id, tombstone of the completion's id
-- ARGV: digest, the completion's member, what the tombstones say ("" for none), their ttl in ms
local size = redis.call('HGET', KEYS[3], ARGV[1])
if size then redis.call('HINCRBY', KEYS[3], 'total', -size) end
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[4], ARGV[2])
if ARGV[3] ~= '' then
    redis.call('SET', KEYS[5], ARGV[3], 'PX', ARGV[4])
    redis.call('SET', KEYS[6], ARGV[3], 'PX', ARGV[4])
end
"""
