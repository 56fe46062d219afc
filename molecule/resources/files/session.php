<?php
// Copyright (c) 2026, the clearproxy.haproxy contributors
// GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// The classic test page of session affinity: the session is known to one server only.
session_start();
$_SESSION['visits'] = ($_SESSION['visits'] ?? 0) + 1;
require __DIR__ . '/index.php';
echo 'session_name: ', session_name(), "\n";
echo 'session_id: ', session_id(), "\n";
echo 'visits: ', $_SESSION['visits'], "\n";
