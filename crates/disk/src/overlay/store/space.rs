//! What an overlay takes of the file system, and how much more it may.

use std::ops::Range;

use super::super::layer::{BLOCK_BYTES, Layer};
use super::super::live::Mark;
use super::super::stack::Stack;
use super::Store;
use crate::health::trouble;
use crate::{DiskError, OpenError, Space, files};

impl Store {
    /// Sets the quota, durably.
    pub(in crate::overlay) fn set_quota(&self, quota_bytes: Option<u64>) -> Result<(), OpenError> {
        if quota_bytes == Some(0) {
            let reason = "a quota of 0 bytes would leave nothing to write to";
            return Err(DiskError::NoSpace(self.context(reason)).into());
        }
        let _stripes = self.all_stripes();
        self.health.check()?;
        self.change_head(&mut self.situation(), |head| head.quota_bytes = quota_bytes)?;
        self.count_anew(quota_bytes)?;
        Ok(())
    }

    pub(in crate::overlay) fn quota(&self) -> Option<u64> {
        self.room.quota_bytes()
    }

    pub(in crate::overlay) fn set_reserve(&self, bytes: u64) {
        self.room.set_reserve(bytes);
    }

    /// Counts what the layers hold, where a quota asks for it. The caller holds
    /// the stripes, or has not shown the store to anybody yet.
    pub(super) fn count_anew(&self, quota_bytes: Option<u64>) -> Result<(), DiskError> {
        let used = match quota_bytes {
            None => 0,
            Some(_) => self.held_bytes(&self.disk.stack())?,
        };
        self.room.set_quota(quota_bytes, used);
        Ok(())
    }

    fn held_bytes(&self, stack: &Stack) -> Result<u64, DiskError> {
        let failed = |e| trouble(self.context("measuring"), e);
        let mut bytes = 0;
        for layer in stack.frozen() {
            bytes += layer.stored_bytes().map_err(failed)?;
        }
        let own = stack.top.layer().map_or(0, |top| top.live.count().0);
        Ok(bytes + own * BLOCK_BYTES)
    }

    /// What is left is the smaller of the quota's rest and what the pool has
    /// above its reserve.
    pub(in crate::overlay) fn space(&self) -> Option<Space> {
        let stack = self.disk.stack();
        let mut used_bytes = 0;
        for layer in stack.frozen() {
            used_bytes += layer.stored_bytes().ok()?;
        }
        if let Some(top) = stack.top.layer() {
            used_bytes += files::space(top.data.file.inner())?.used_bytes;
        }
        Some(Space {
            used_bytes,
            free_bytes: self.room.left(self.pool_free_bytes()?),
        })
    }

    fn pool_free_bytes(&self) -> Option<u64> {
        files::free_bytes(self.dir())
    }

    /// Refuses a write that would take more than there is, before any of it is
    /// done.
    pub(super) fn check_room(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        if bytes == 0 || !self.room.is_limited() || self.health.check().is_err() {
            return Ok(());
        }
        let blocks = offset / BLOCK_BYTES..(offset + bytes).div_ceil(BLOCK_BYTES);
        let fresh = match self.disk.stack().top.layer() {
            Some(top) => fresh_bytes(top, blocks),
            None => (blocks.end - blocks.start) * BLOCK_BYTES,
        };
        match fresh {
            0 => Ok(()),
            fresh => self.room.check(fresh, || self.pool_free_bytes()),
        }
    }

    /// Takes the room of those blocks of a group that are not ours yet, whose
    /// lock is held; answers what was taken.
    pub(super) fn take_room(&self, top: &Layer, blocks: Range<u64>) -> Result<u64, DiskError> {
        if !self.room.is_limited() {
            return Ok(0);
        }
        match fresh_bytes(top, blocks) {
            0 => Ok(0),
            fresh => {
                self.room.take(fresh, || self.pool_free_bytes())?;
                Ok(fresh)
            }
        }
    }

    /// The layers were rearranged: what they hold may be less.
    pub(super) fn recount(&self) -> Result<(), DiskError> {
        // Asked under the stripes: it may be set meanwhile.
        let _stripes = self.all_stripes();
        self.count_anew(self.room.quota_bytes())
    }
}

/// What blocks take that are not the top's own yet.
fn fresh_bytes(top: &Layer, blocks: Range<u64>) -> u64 {
    let (mut fresh, mut at) = (0, blocks.start);
    while at < blocks.end {
        let (mark, end) = top.live.run(at, blocks.end);
        if mark != Mark::Own {
            fresh += end - at;
        }
        at = end;
    }
    fresh * BLOCK_BYTES
}
